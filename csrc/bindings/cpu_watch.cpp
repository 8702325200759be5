// Quick looks at Python objects: whether the tensors that a plan holds addresses of are still the same, and lie where
// they lay. Attributes are read through descriptors of torch's tensor class that Python passes in; no torch header is
// needed.
#include <pybind11/pybind11.h>

#include <vector>

#include "cpu_operators.h"

namespace jepa {

namespace py = pybind11;

namespace {

py::object call(const py::object& method, PyObject* self) {
  PyObject* result = PyObject_Vectorcall(method.ptr(), &self, 1, nullptr);
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

uintptr_t as_integer(const py::object& number) {
  const unsigned long long value = PyLong_AsUnsignedLongLong(number.ptr());
  if (value == static_cast<unsigned long long>(-1) && PyErr_Occurred()) throw py::error_already_set();
  return static_cast<uintptr_t>(value);
}

// The descriptors data_ptr and numel (methods) and dtype (a getter).
struct Descriptors {
  py::object data_ptr, numel, dtype;

  uintptr_t address(PyObject* tensor) const { return as_integer(call(data_ptr, tensor)); }
  uintptr_t elements(PyObject* tensor) const { return as_integer(call(numel, tensor)); }
  py::object type(PyObject* tensor) const {
    PyObject* result =
        Py_TYPE(dtype.ptr())->tp_descr_get(dtype.ptr(), tensor, reinterpret_cast<PyObject*>(Py_TYPE(tensor)));
    if (result == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
  }
};

class TensorWatch {
 public:
  TensorWatch(const py::list& tensors, py::object data_ptr, py::object numel, py::object dtype, bool addresses_only)
      : read_{std::move(data_ptr), std::move(numel), std::move(dtype)}, addresses_only_(addresses_only) {
    entries_.reserve(tensors.size());
    for (const py::handle tensor : tensors)
      entries_.push_back(
          {py::weakref(tensor), read_.address(tensor.ptr()), read_.elements(tensor.ptr()), read_.type(tensor.ptr())});
  }

  bool unchanged(const py::list& tensors) const {
    if (tensors.size() != entries_.size()) return false;
    for (size_t i = 0; i < entries_.size(); ++i) {
      PyObject* tensor = PyList_GET_ITEM(tensors.ptr(), static_cast<Py_ssize_t>(i));
      const Entry& entry = entries_[i];
      if (PyWeakref_GetObject(entry.reference.ptr()) != tensor || read_.address(tensor) != entry.address) return false;
      if (!addresses_only_ && (read_.elements(tensor) != entry.elements || !read_.type(tensor).is(entry.type)))
        return false;
    }
    return true;
  }

 private:
  struct Entry {
    py::weakref reference;
    uintptr_t address;
    uintptr_t elements;
    py::object type;
  };
  Descriptors read_;
  bool addresses_only_;
  std::vector<Entry> entries_;
};

// Entries of dictionaries and the size of each: the parameters and children of modules.
class SlotWatch {
 public:
  explicit SlotWatch(const py::list& dictionaries) {
    for (const py::handle item : dictionaries) {
      const py::dict dictionary = py::reinterpret_borrow<py::dict>(item);
      sizes_.push_back({dictionary, dictionary.size()});
      for (const auto& [key, value] : dictionary)
        slots_.push_back(
            {dictionary, py::reinterpret_borrow<py::object>(key), py::reinterpret_borrow<py::object>(value)});
    }
  }

  bool unchanged() const {
    for (const auto& [dictionary, size] : sizes_)
      if (dictionary.size() != size) return false;
    for (const Slot& slot : slots_)
      if (PyDict_GetItemWithError(slot.dictionary.ptr(), slot.key.ptr()) != slot.value.ptr())
        return PyErr_Clear(), false;
    return true;
  }

 private:
  struct Slot {
    py::dict dictionary;
    py::object key, value;
  };
  std::vector<std::pair<py::dict, size_t>> sizes_;
  std::vector<Slot> slots_;
};

}  // namespace

void bind_watch(py::module_& m) {
  py::class_<TensorWatch>(m, "TensorWatch",
                          "Tensors by weak reference with their addresses; see jepa_kernels.ops.plans.")
      .def(py::init<const py::list&, py::object, py::object, py::object, bool>(), py::arg("tensors"),
           py::arg("data_ptr"), py::arg("numel"), py::arg("dtype"), py::arg("addresses_only"))
      .def("unchanged", &TensorWatch::unchanged, py::arg("tensors"));
  py::class_<SlotWatch>(m, "SlotWatch", "Entries of dictionaries; see jepa_kernels.ops.plans.")
      .def(py::init<const py::list&>(), py::arg("dictionaries"))
      .def("unchanged", &SlotWatch::unchanged);
}

}  // namespace jepa
