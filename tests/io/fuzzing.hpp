// What the fuzzers share: files of any bytes, and reading all that an opened file offers.
#pragma once

#include <mpi_router/io/stored_tensor.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <string_view>

namespace fuzzing {

/// A file in memory, with a path to open it by.
class memory_file {
 public:
  explicit memory_file(std::string_view bytes) : fd_(::memfd_create("fuzz", 0)) {
    if (fd_ < 0 || ::write(fd_, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) {
      __builtin_trap();
    }
  }
  ~memory_file() { ::close(fd_); }
  memory_file(const memory_file&) = delete;
  memory_file& operator=(const memory_file&) = delete;

  [[nodiscard]] std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

inline void require(bool holds) {
  if (!holds) {
    __builtin_trap();
  }
}

/// Touches each byte of each tensor, and finds each by its name.
template <class File>
void read_all(const File& file) {
  unsigned sum = 0;
  for (const auto& tensor : file.tensors()) {
    for (const std::byte b : tensor.bytes()) {
      sum += static_cast<unsigned>(b);
    }
    require(file.find(tensor.name()) == &tensor);
  }
  [[maybe_unused]] volatile unsigned sink = sum;
}

/// Decodes a packed weight by rows and as a whole: one number, whichever way. What cannot be decoded says
/// why.
template <class Weight>
void decode_all(const Weight& w) {
  if (!w.is_packed() || !w.problem().empty()) {
    return;
  }
  const auto cols = static_cast<std::size_t>(w.cols());
  std::vector<double> whole(static_cast<std::size_t>(w.rows()) * cols);
  std::vector<double> row(cols);
  w.decode(0, w.rows(), whole.data());
  for (mpi_router::index_t f = 0; f < w.rows(); ++f) {
    w.decode(f, 1, row.data());
    for (std::size_t d = 0; d < cols; ++d) {
      const double x = whole[static_cast<std::size_t>(f) * cols + d];
      require(x == row[d] || (x != x && row[d] != row[d]));
    }
  }
}

}  // namespace fuzzing
