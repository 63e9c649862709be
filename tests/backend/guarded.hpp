// Memory that ends (or starts) at a page nobody may touch: reading outside it ends the program.
#pragma once

#include <mpi_router/core/config.hpp>

#ifdef _WIN32
#include <mpi_router/io/windows.hpp>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <cstddef>
#include <stdexcept>
#include <utility>

namespace test_support {

#ifdef _WIN32
inline constexpr std::size_t page_size = 4096;
/// Memory that nobody may touch, except the pages between the first and the last; null if there is none.
inline void* reserve_guarded(std::size_t length) {
  auto* const base =
      static_cast<char*>(VirtualAlloc(nullptr, length, MEM_RESERVE | MEM_COMMIT, PAGE_NOACCESS));
  DWORD before = 0;
  const bool opened =
      base != nullptr && (length == 2 * page_size || VirtualProtect(base + page_size, length - 2 * page_size,
                                                                    PAGE_READWRITE, &before) != 0);
  return opened ? base : nullptr;
}
inline void release_guarded(void* base, std::size_t) { VirtualFree(base, 0, MEM_RELEASE); }
#else
inline const std::size_t page_size = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
/// Memory that nobody may touch, except the pages between the first and the last; null if there is none.
inline void* reserve_guarded(std::size_t length) {
  void* const base = mmap(nullptr, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return base != MAP_FAILED && mprotect(static_cast<char*>(base) + page_size, length - 2 * page_size,
                                        PROT_READ | PROT_WRITE) == 0
             ? base
             : nullptr;
}
inline void release_guarded(void* base, std::size_t length) { munmap(base, length); }
#endif

/// `size` elements of T, of which the last (or the first) touches a forbidden page.
template <class T>
class guarded {
 public:
  enum class side : unsigned char { before, after };

  guarded(mpi_router::index_t size, side where) {
    const auto page = page_size;
    const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(T);
    const std::size_t whole = (bytes + page - 1) / page * page;
    length_ = whole + 2 * page;
    base_ = static_cast<char*>(reserve_guarded(length_));
    if (base_ == nullptr) {
      throw std::runtime_error("no guarded memory");
    }
    data_ = reinterpret_cast<T*>(where == side::after ? base_ + page + whole - bytes : base_ + page);
  }
  guarded(guarded&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)), length_(other.length_), data_(other.data_) {}
  guarded(const guarded&) = delete;
  guarded& operator=(const guarded&) = delete;
  ~guarded() {
    if (base_ != nullptr) release_guarded(base_, length_);
  }

  [[nodiscard]] T* data() const { return data_; }

 private:
  char* base_ = nullptr;
  std::size_t length_ = 0;
  T* data_ = nullptr;
};

}  // namespace test_support
