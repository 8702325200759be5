// Quick looks at Python objects: whether the tensors that a plan holds addresses of are still the same, and lie where
// they lay. No torch header is needed: see dlpack_exchange.h.
#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <vector>

#include "cpu_operators.h"
#include "dlpack_exchange.h"

namespace jepa {

namespace py = pybind11;

namespace {

class TensorWatch {
 public:
  TensorWatch(const py::list& tensors, const py::capsule& exchange)
      : exchange_(exchange.get_pointer<DlpackExchange>()), died_(std::make_shared<bool>(false)) {
    if (exchange_->major != kDlpackMajor)
      throw std::invalid_argument("TensorWatch: DLPack " + std::to_string(exchange_->major) + " is not known, expected 1");
    // One flag for all: looking up each reference again would cost a cache miss a tensor.
    const py::cpp_function on_death([died = died_](const py::object&) { *died = true; });
    for (const py::handle tensor : tensors) {
      references_.emplace_back(tensor, on_death);
      entries_.push_back({tensor.ptr(), layout(tensor.ptr())});
    }
  }

  // The tensors of several lists, one after the other.
  bool unchanged(const py::args& lists) const {
    if (*died_) return false;
    size_t seen = 0;
    for (const py::handle item : lists) {
      const py::list list = py::reinterpret_borrow<py::list>(item);
      if (seen + list.size() > entries_.size()) return false;
      for (size_t i = 0; i < list.size(); ++i, ++seen) {
        PyObject* tensor = PyList_GET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i));
        if (entries_[seen].tensor != tensor || !(layout(tensor) == entries_[seen].layout)) return false;
      }
    }
    return seen == entries_.size();
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
    const PyObject* tensor;  // alive unless *died_
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
  std::shared_ptr<bool> died_;
  std::vector<py::weakref> references_;
  std::vector<Entry> entries_;
};

// Entries of dictionaries in their order: the parameters and children of modules.
class SlotWatch {
 public:
  explicit SlotWatch(const py::list& dictionaries) {
    for (const py::handle item : dictionaries) {
      dictionaries_.push_back(py::reinterpret_borrow<py::dict>(item));
      sizes_.push_back(dictionaries_.back().size());
      for (const auto& [key, value] : dictionaries_.back())
        slots_.push_back({py::reinterpret_borrow<py::object>(key), py::reinterpret_borrow<py::object>(value)});
    }
  }

  bool unchanged() const {
    size_t seen = 0;
    for (size_t d = 0; d < dictionaries_.size(); ++d) {
      if (dictionaries_[d].size() != sizes_[d]) return false;
      Py_ssize_t place = 0;
      PyObject *key, *value;
      for (; PyDict_Next(dictionaries_[d].ptr(), &place, &key, &value); ++seen)
        if (slots_[seen].key.ptr() != key || slots_[seen].value.ptr() != value) return false;
    }
    return true;
  }

 private:
  struct Slot {
    py::object key, value;
  };
  std::vector<py::dict> dictionaries_;
  std::vector<size_t> sizes_;
  std::vector<Slot> slots_;
};

}  // namespace

void bind_watch(py::module_& m) {
  py::class_<TensorWatch>(m, "TensorWatch",
                          "Tensors by weak reference with their addresses; see jepa_kernels.ops.plans.")
      .def(py::init<const py::list&, const py::capsule&>(), py::arg("tensors"), py::arg("exchange"))
      .def("unchanged", &TensorWatch::unchanged);
  py::class_<SlotWatch>(m, "SlotWatch", "Entries of dictionaries; see jepa_kernels.ops.plans.")
      .def(py::init<const py::list&>(), py::arg("dictionaries"))
      .def("unchanged", &SlotWatch::unchanged);
}

}  // namespace jepa
