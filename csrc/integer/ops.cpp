// Integer models as ops. A program has a number for as long as it is referenced.
#include <torch/library.h>

#include <unordered_map>

#include "integer/file.h"
#include "ops/call.h"

namespace bitpare::integer {
namespace {

// Programs by their number. A replaced program keeps its number; calls in progress finish with the
// program they began with.
class Programs {
 public:
  int64_t put(int64_t number, std::shared_ptr<Program> program) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (number == 0) number = ++newest_;
    std::swap(programs_[number], program);  // the old one goes after the lock
    return number;
  }
  void remove(int64_t number) {
    std::shared_ptr<Program> gone;
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = programs_.find(number);
    if (found == programs_.end()) return;
    std::swap(found->second, gone);
    programs_.erase(found);
  }
  std::shared_ptr<Program> at(int64_t number) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = programs_.find(number);
    TORCH_CHECK(found != programs_.end(), "integer model: program ", number,
                " is not of this process, or is gone");
    return found->second;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<int64_t, std::shared_ptr<Program>> programs_;
  int64_t newest_ = 0;
};

Programs& programs() {
  static Programs all;
  return all;
}

// These ops read tensors without a dispatch by device or kind.
void check_memory(const char* name, const Tensor& x) {
  TORCH_CHECK(x.layout() == at::kStrided && x.has_storage() &&
                  x.storage().data_ptr().device() == x.device() && !x.is_meta() &&
                  (x.numel() == 0 || x.storage().data() != nullptr),
              "integer model: tensor ", name, " must be a plain tensor that holds values");
}

Tensors named(at::TensorList tensors, const std::vector<std::string>& names) {
  TORCH_CHECK(tensors.size() == names.size(), "integer model: ", tensors.size(), " tensors, ",
              names.size(), " names");
  Tensors made;
  for (size_t i = 0; i < names.size(); ++i) {
    made[names[i]] = ops::with_values(tensors[i]);
    check_memory(names[i].c_str(), made[names[i]]);
  }
  return made;
}

// Converts errors of files and specs to Python's ValueError.
template <class F>
auto checked(F f) {
  try {
    return f();
  } catch (const std::runtime_error& error) {
    if (dynamic_cast<const c10::Error*>(&error)) throw;
    TORCH_CHECK_VALUE(false, error.what());
  }
}

int64_t new_program(c10::string_view spec, at::TensorList tensors,
                    const std::vector<std::string>& names, int64_t number) {
  return checked([&] {
    Spec read = Spec::parse(Json::parse({spec.data(), spec.size()}));
    auto program = std::make_shared<Program>(std::move(read), named(tensors, names));
    return programs().put(number, std::move(program));
  });
}

Tensor encode_file(c10::string_view spec, at::TensorList tensors,
                   const std::vector<std::string>& names) {
  std::string content =
      checked([&] { return encode({{spec.data(), spec.size()}, named(tensors, names)}); });
  Tensor made = at::empty({static_cast<int64_t>(content.size())}, at::kByte);
  std::copy(content.begin(), content.end(), made.data_ptr<uint8_t>());
  return made;
}

std::tuple<std::string, std::vector<Tensor>, std::vector<std::string>> decode_file(
    const Tensor& content) {
  TORCH_CHECK_VALUE(content.scalar_type() == at::kByte && content.is_cpu() && content.dim() == 1,
                    "integer model: content must be uint8 of one dimension on the CPU");
  Tensor values = ops::with_values(content);
  check_memory("content", values);
  Tensor bytes = values.contiguous();
  const char* begin = reinterpret_cast<const char*>(bytes.const_data_ptr<uint8_t>());
  Saved saved = checked([&] { return decode({begin, static_cast<size_t>(bytes.numel())}); });
  std::vector<Tensor> tensors;
  std::vector<std::string> names;
  for (const auto& [name, tensor] : saved.tensors) {
    names.push_back(name);
    tensors.push_back(tensor);
  }
  return {saved.spec, tensors, names};
}

void release(int64_t number) { programs().remove(number); }

std::vector<Tensor> run(at::TensorList inputs, int64_t number) {
  return programs().at(number)->run(inputs);
}

std::vector<Tensor> meta(at::TensorList inputs, int64_t number) {
  return programs().at(number)->shapes(inputs);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def("_new_program(str spec, Tensor[] tensors, str[] names, int number=0) -> int", new_program);
  m.def("_release_program(int program) -> ()", release);
  m.def("_encode_integer(str spec, Tensor[] tensors, str[] names) -> Tensor", encode_file);
  m.def("_decode_integer(Tensor content) -> (str, Tensor[], str[])", decode_file);
  m.def("run_program(Tensor[] inputs, int program) -> Tensor[]", ops::tags());
  ops::kernels(m, "run_program", run, run, meta);
  ops::no_derivative(m, "run_program");
}

}  // namespace bitpare::integer
