// Integer models as safetensors files: what runs here runs elsewhere, without Python or the class
// the model was made from.
#pragma once
#include "integer/program.h"

namespace bitpare::integer {

// spec: JSON text. The tensors are what it names.
struct Saved {
  std::string spec;
  Tensors tensors;
};

// The content of a file. Weights are stored in as few bits as hold them, or as a bitmap and those
// that are not 0.
std::string encode(const Saved& model);

// The model of such a content. Throws std::runtime_error that names the field where it is cut off,
// damaged, of another kind or of a newer version. Memory is taken for what is there, not for what
// it claims.
Saved decode(std::string_view file);

// decode() of a file, which errors name.
Saved load(const std::string& path);

}  // namespace bitpare::integer
