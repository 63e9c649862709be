// What reading and writing ask of a POSIX system; system.hpp chooses between this and windows.hpp.
#pragma once

#include <mpi_router/core/config.hpp>

#ifndef _WIN32
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <span>
#include <string>
#include <system_error>

MPIROUTER_BEGIN

namespace detail {

using raw_descriptor = int;
inline constexpr raw_descriptor no_descriptor = -1;

/// Why the last call failed.
[[nodiscard]] inline std::string last_os_error() { return std::generic_category().message(errno); }
/// Whether it was for a name that is taken.
[[nodiscard]] inline bool name_was_taken() noexcept { return errno == EEXIST; }
/// Whether it was for memory that cannot be read, such as a map of a file that was cut short.
[[nodiscard]] inline bool memory_was_lost() noexcept { return errno == EFAULT; }

/// The result of a system call, made again for as long as signals interrupt it.
template <class Call>
[[nodiscard]] auto uninterrupted(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) {
    result = call();
  }
  return result;
}

/// Opens a file; neither a pipe without a writer nor anything else is waited for.
[[nodiscard]] inline raw_descriptor open_to_read(const std::filesystem::path& path) {
  return uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); });
}
/// Makes a file that is not there, to write to.
[[nodiscard]] inline raw_descriptor create_file(const std::filesystem::path& path) {
  return uninterrupted([&] { return ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); });
}
inline void close_file(raw_descriptor fd) noexcept { ::close(fd); }

struct file_facts {
  bool known = false;
  bool regular = false;
  std::size_t size = 0;
};
[[nodiscard]] inline file_facts examine(raw_descriptor fd) noexcept {
  struct stat info{};
  const bool known = ::fstat(fd, &info) == 0;
  return {known, known && S_ISREG(info.st_mode), static_cast<std::size_t>(info.st_size)};
}

/// The address of a map of a file's first `size` bytes, at least one; null where there can be none.
[[nodiscard]] inline void* map_to_read(raw_descriptor fd, std::size_t size) noexcept {
  void* const base = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  return base == MAP_FAILED ? nullptr : base;
}
inline void unmap(void* base, std::size_t size) noexcept { ::munmap(base, size); }

/// How many of the bytes were written; less than one if none could be.
[[nodiscard]] inline std::ptrdiff_t write_some(raw_descriptor fd, std::span<const std::byte> bytes) {
  constexpr std::size_t most = std::size_t{1} << 26U;  // one write(2) takes at most 2 GiB
  return uninterrupted([&] { return ::write(fd, bytes.data(), std::min(bytes.size(), most)); });
}
/// Whether what was written is on the disk.
[[nodiscard]] inline bool sync_file(raw_descriptor fd) {
  const int synced = uninterrupted([&] { return ::fsync(fd); });
  return synced == 0 || errno == EINVAL;  // some file systems have nothing to sync
}
/// Makes a rename in `folder` last through a power failure, where the file system can.
inline void sync_folder(const std::filesystem::path& folder) {
  const raw_descriptor fd = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd >= 0) {
    static_cast<void>(uninterrupted([&] { return ::fsync(fd); }));
    ::close(fd);
  }
}

/// Renames in one step; a file takes the place of one that is there.
[[nodiscard]] inline bool rename_over(const std::filesystem::path& from, const std::filesystem::path& to) {
  return ::rename(from.c_str(), to.c_str()) == 0;
}
/// Why the last one failed.
[[nodiscard]] inline std::string rename_error() { return last_os_error(); }
[[nodiscard]] inline bool make_folder(const std::filesystem::path& path) {
  return ::mkdir(path.c_str(), 0777) == 0;
}

// For signal handlers.
using native_name = std::filesystem::path::value_type;
inline void remove_file(const native_name* name) noexcept { ::unlink(name); }
inline void remove_folder(const native_name* name) noexcept { ::rmdir(name); }

}  // namespace detail

MPIROUTER_END
#endif
