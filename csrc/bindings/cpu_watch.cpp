// Quick looks at Python objects: whether the tensors that a plan holds addresses of are still the same, and lie where
// they lay. No torch header is needed: see dlpack_exchange.h.
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "cpu_operators.h"
#include "dlpack_exchange.h"

namespace jepa {

namespace py = pybind11;

namespace {

class TensorWatch {
 public:
  TensorWatch(const py::list& tensors, const py::capsule& exchange) : exchange_(exchange.get_pointer<DlpackExchange>()) {
    if (exchange_->major != kDlpackMajor)
      throw std::invalid_argument("TensorWatch: DLPack " + std::to_string(exchange_->major) + " is not known, expected 1");
    entries_.reserve(tensors.size());
    for (const py::handle tensor : tensors) entries_.push_back({py::weakref(tensor), layout(tensor.ptr())});
  }

  bool unchanged(const py::list& tensors) const {
    if (tensors.size() != entries_.size()) return false;
    for (size_t i = 0; i < entries_.size(); ++i) {
      PyObject* tensor = PyList_GET_ITEM(tensors.ptr(), static_cast<Py_ssize_t>(i));
      if (PyWeakref_GetObject(entries_[i].reference.ptr()) != tensor || !(layout(tensor) == entries_[i].layout)) return false;
    }
    return true;
  }

 private:
  struct Layout {
    const void* address;
    int64_t elements;
    uint8_t code, bits;
    bool operator==(const Layout& other) const {
      return address == other.address && elements == other.elements && code == other.code && bits == other.bits;
    }
  };
  struct Entry {
    py::weakref reference;
    Layout layout;
  };

  Layout layout(PyObject* tensor) const {
    DlpackTensor seen;
    if (exchange_->tensor_from_object(tensor, &seen) != 0) throw py::error_already_set();
    int64_t elements = 1;
    for (int32_t d = 0; d < seen.ndim; ++d) elements *= seen.shape[d];
    return {static_cast<const char*>(seen.data) + seen.byte_offset, elements, seen.dtype.code, seen.dtype.bits};
  }

  const DlpackExchange* exchange_;
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
      .def(py::init<const py::list&, const py::capsule&>(), py::arg("tensors"), py::arg("exchange"))
      .def("unchanged", &TensorWatch::unchanged, py::arg("tensors"));
  py::class_<SlotWatch>(m, "SlotWatch", "Entries of dictionaries; see jepa_kernels.ops.plans.")
      .def(py::init<const py::list&>(), py::arg("dictionaries"))
      .def("unchanged", &SlotWatch::unchanged);
}

}  // namespace jepa
