// Classifies an image with an integer model, without Python:
//   classify model.safetensors image.ppm [mean deviation]
// The image is a binary PGM or PPM of the size the model was trained with; its values are divided
// by 255, then mean is subtracted and the result divided by deviation (0 and 1).
#include <ATen/ATen.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <stdexcept>

#include "bitpare.h"
#include "integer/file.h"

namespace {

at::Tensor read_image(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, most = 0;
  file >> kind >> width >> height >> most;
  int64_t channels = kind == "P6" ? 3 : kind == "P5" ? 1 : 0;
  if (!file || channels == 0 || most != 255 || width < 1 || height < 1) {
    throw std::runtime_error(path + " is not a binary PGM or PPM of 8 bits");
  }
  file.get();
  at::Tensor bytes = at::empty({1, height, width, channels}, at::kByte);
  file.read(reinterpret_cast<char*>(bytes.data_ptr<uint8_t>()), bytes.numel());
  if (file.gcount() != bytes.numel()) throw std::runtime_error(path + " is cut off");
  return bytes.permute({0, 3, 1, 2}).to(at::kFloat) / 255;
}

}  // namespace

int main(int count, char** words) {
  if (count != 3 && count != 5) {
    std::cerr << "usage: classify model.safetensors image.ppm [mean deviation]\n";
    return 2;
  }
  try {
    using namespace bitpare::integer;
    Saved saved = load(words[1]);
    Program program(Spec::parse(Json::parse(saved.spec)), saved.tensors);
    at::Tensor image = read_image(words[2]);
    if (count == 5) image = (image - std::atof(words[3])) / std::atof(words[4]);
    at::Tensor scores = program.run({image})[0].flatten();
    std::cout << "class " << scores.argmax().item<int64_t>() << "\n";
    for (int64_t i = 0; i < scores.numel(); ++i) {
      std::printf("%.9g\n", static_cast<double>(scores[i].item<float>()));
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
