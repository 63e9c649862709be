// libFuzzer: any bytes are either a GGUF file whose every tensor and value can be read, or a file_error.
#include "fuzzing.hpp"

#include <mpi_router/io/gguf_file.hpp>
#include <mpi_router/io/gguf_weights.hpp>

namespace {

void read_metadata(const mpi_router::gguf_file& file) {
  std::size_t sum = 0;
  for (const auto& [key, value] : file.metadata()) {
    if (const auto* list = std::get_if<mpi_router::gguf_list>(&value)) {
      sum += list->number(list->size - 1).has_value() ? 1U : 0U;
    }
    sum += key.size() + static_cast<std::size_t>(file.count(key).value_or(0));
  }
  [[maybe_unused]] volatile std::size_t sink = sum;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  // The magic would rarely be guessed: half of the inputs get it, and the version.
  std::string file(reinterpret_cast<const char*>(data), size);
  if (size > 0 && data[0] % 2 == 0) {
    file.insert(0, std::string("GGUF\3\0\0\0", 8));
  }
  try {
    const fuzzing::memory_file bytes(file);
    std::deque<mpi_router::gguf_file> series;
    const auto& opened = series.emplace_back(bytes.path());
    fuzzing::read_all(opened);
    read_metadata(opened);
    std::deque<mpi_router::stored_tensor> plain;
    std::vector<mpi_router::weight> weights;
    mpi_router::detail::add_weights(opened, series, plain, weights);
    for (const auto& w : weights) {
      fuzzing::decode_all(w);
    }
  } catch (const mpi_router::file_error&) {
  }
  return 0;
}
