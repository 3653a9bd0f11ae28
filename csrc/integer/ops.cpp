// Integer models as ops. A program is known by a number as long as somebody holds it.
#include <torch/library.h>

#include <unordered_map>

#include "integer/file.h"
#include "ops/call.h"

namespace bitpare::integer {
namespace {

class Programs {
 public:
  int64_t add(std::shared_ptr<Program> program) {
    std::lock_guard<std::mutex> lock(mutex_);
    programs_[++newest_] = std::move(program);
    return newest_;
  }
  void remove(int64_t number) {
    std::lock_guard<std::mutex> lock(mutex_);
    programs_.erase(number);
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

Tensors named(at::TensorList tensors, const std::vector<std::string>& names) {
  TORCH_CHECK(tensors.size() == names.size(), "integer model: ", tensors.size(), " tensors, ",
              names.size(), " names");
  Tensors made;
  for (size_t i = 0; i < names.size(); ++i) made[names[i]] = tensors[i];
  return made;
}

// Errors of files and specs, as Python's ValueError.
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
                    const std::vector<std::string>& names) {
  return checked([&] {
    Spec read = Spec::parse(Json::parse({spec.data(), spec.size()}));
    return programs().add(std::make_shared<Program>(std::move(read), named(tensors, names)));
  });
}

void save_file(c10::string_view path, c10::string_view spec, at::TensorList tensors,
               const std::vector<std::string>& names) {
  checked([&] {
    save({path.data(), path.size()}, {{spec.data(), spec.size()}, named(tensors, names)});
    return 0;
  });
}

std::tuple<std::string, std::vector<Tensor>, std::vector<std::string>> load_file(
    c10::string_view path) {
  Saved saved = checked([&] { return load({path.data(), path.size()}); });
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
  m.def("_new_program(str spec, Tensor[] tensors, str[] names) -> int", new_program);
  m.def("_release_program(int program) -> ()", release);
  m.def("_save_integer(str path, str spec, Tensor[] tensors, str[] names) -> ()", save_file);
  m.def("_load_integer(str path) -> (str, Tensor[], str[])", load_file);
  m.def("run_program(Tensor[] inputs, int program) -> Tensor[]", ops::tags());
}
TORCH_LIBRARY_IMPL(bitpare, CPU, m) { m.impl("run_program", run); }
TORCH_LIBRARY_IMPL(bitpare, CUDA, m) { m.impl("run_program", run); }
TORCH_LIBRARY_IMPL(bitpare, Meta, m) { m.impl("run_program", meta); }
TORCH_LIBRARY_IMPL(bitpare, Autograd, m) {
  m.impl("run_program", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace bitpare::integer
