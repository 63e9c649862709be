// libFuzzer: any bytes are either a GGUF file whose every tensor can be read, or a file_error.
#include <mpi_router/io/gguf_file.hpp>

#include <sys/mman.h>

#include <string>

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  // The magic would rarely be guessed: half of the inputs get it, and the version.
  std::string file(reinterpret_cast<const char*>(data), size);
  if (size > 0 && data[0] % 2 == 0) {
    file.insert(0, std::string("GGUF\3\0\0\0", 8));
  }
  const mpi_router::detail::file_descriptor fd(::memfd_create("fuzz", 0));
  if (fd.get() < 0 || ::write(fd.get(), file.data(), file.size()) != static_cast<ssize_t>(file.size())) {
    __builtin_trap();
  }
  try {
    const mpi_router::gguf_file opened("/proc/self/fd/" + std::to_string(fd.get()));
    unsigned sum = 0;
    for (const auto& tensor : opened.tensors()) {
      for (const std::byte b : tensor.bytes()) {
        sum += static_cast<unsigned>(b);
      }
      if (opened.find(tensor.name()) != &tensor) {
        __builtin_trap();
      }
    }
    for (const auto& [key, value] : opened.metadata()) {
      if (const auto* list = std::get_if<mpi_router::gguf_list>(&value)) {
        sum += list->number(list->size - 1).has_value() ? 1U : 0U;
      }
      sum += static_cast<unsigned>(key.size() + opened.count(key).value_or(0));
    }
    [[maybe_unused]] volatile unsigned sink = sum;
  } catch (const mpi_router::file_error&) {
  }
  return 0;
}
