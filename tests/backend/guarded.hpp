// Memory that ends (or starts) at a page nobody may touch: reading outside it ends the program.
#pragma once

#include <mpi_router/core/config.hpp>

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <stdexcept>
#include <utility>

namespace test_support {

/// `size` elements of T, of which the last (or the first) touches a forbidden page.
template <class T>
class guarded {
 public:
  enum class side : unsigned char { before, after };

  guarded(mpi_router::index_t size, side where) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(T);
    const std::size_t whole = (bytes + page - 1) / page * page;
    length_ = whole + 2 * page;
    base_ = static_cast<char*>(mmap(nullptr, length_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + page, whole, PROT_READ | PROT_WRITE) != 0) {
      throw std::runtime_error("no guarded memory");
    }
    data_ = reinterpret_cast<T*>(where == side::after ? base_ + page + whole - bytes : base_ + page);
  }
  guarded(guarded&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)), length_(other.length_), data_(other.data_) {}
  guarded(const guarded&) = delete;
  guarded& operator=(const guarded&) = delete;
  ~guarded() {
    if (base_ != nullptr) munmap(base_, length_);
  }

  [[nodiscard]] T* data() const { return data_; }

 private:
  char* base_ = nullptr;
  std::size_t length_ = 0;
  T* data_ = nullptr;
};

}  // namespace test_support
