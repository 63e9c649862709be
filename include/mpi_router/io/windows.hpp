// What reading and writing ask of Windows; system.hpp chooses between this and posix.hpp, where each is
// explained.
#pragma once

#include <mpi_router/core/config.hpp>

#ifdef _WIN32
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <system_error>

MPIROUTER_BEGIN

namespace detail {

using raw_descriptor = HANDLE;
inline const raw_descriptor no_descriptor = INVALID_HANDLE_VALUE;

[[nodiscard]] inline std::string last_os_error() {
  return std::system_category().message(static_cast<int>(::GetLastError()));
}
[[nodiscard]] inline bool name_was_taken() noexcept { return ::GetLastError() == ERROR_FILE_EXISTS; }
[[nodiscard]] inline bool memory_was_lost() noexcept { return false; }  // a mapped file cannot be cut short

/// Others may read, write and rename it meanwhile, as on POSIX.
[[nodiscard]] inline raw_descriptor open_file(const std::filesystem::path& path, DWORD access,
                                              DWORD creation) {
  return ::CreateFileW(path.c_str(), access, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, nullptr,
                       creation, FILE_ATTRIBUTE_NORMAL | FILE_FLAG_BACKUP_SEMANTICS, nullptr);
}
[[nodiscard]] inline raw_descriptor open_to_read(const std::filesystem::path& path) {
  return open_file(path, GENERIC_READ, OPEN_EXISTING);
}
[[nodiscard]] inline raw_descriptor create_file(const std::filesystem::path& path) {
  return open_file(path, GENERIC_WRITE, CREATE_NEW);
}
inline void close_file(raw_descriptor fd) noexcept { ::CloseHandle(fd); }

struct file_facts {
  bool known = false;
  bool regular = false;
  std::size_t size = 0;
};
[[nodiscard]] inline file_facts examine(raw_descriptor fd) noexcept {
  BY_HANDLE_FILE_INFORMATION info{};
  const bool known = ::GetFileInformationByHandle(fd, &info) != 0;
  const bool folder = (info.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY) != 0;
  const auto size = static_cast<std::uint64_t>(info.nFileSizeHigh) << 32U | info.nFileSizeLow;
  return {known, known && !folder && ::GetFileType(fd) == FILE_TYPE_DISK, static_cast<std::size_t>(size)};
}

[[nodiscard]] inline void* map_to_read(raw_descriptor fd, std::size_t size) noexcept {
  const HANDLE mapping = ::CreateFileMappingW(fd, nullptr, PAGE_READONLY, 0, 0, nullptr);
  if (mapping == nullptr) {
    return nullptr;
  }
  void* const base = ::MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, size);
  ::CloseHandle(mapping);  // the view keeps what it needs
  return base;
}
inline void unmap(void* base, std::size_t) noexcept { ::UnmapViewOfFile(base); }

[[nodiscard]] inline std::ptrdiff_t write_some(raw_descriptor fd, std::span<const std::byte> bytes) {
  constexpr std::size_t most = std::size_t{1} << 26U;
  DWORD written = 0;
  const auto wanted = static_cast<DWORD>(std::min(bytes.size(), most));
  return ::WriteFile(fd, bytes.data(), wanted, &written, nullptr) != 0 ? static_cast<std::ptrdiff_t>(written)
                                                                       : -1;
}
[[nodiscard]] inline bool sync_file(raw_descriptor fd) { return ::FlushFileBuffers(fd) != 0; }
inline void sync_folder(const std::filesystem::path&) {}  // rename_over() waits for the disk

[[nodiscard]] inline bool rename_over(const std::filesystem::path& from, const std::filesystem::path& to) {
  return ::MoveFileExW(from.c_str(), to.c_str(), MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH) != 0;
}
[[nodiscard]] inline std::string rename_error() {
  const DWORD error = ::GetLastError();
  const bool is_held =
      error == ERROR_ACCESS_DENIED || error == ERROR_SHARING_VIOLATION || error == ERROR_USER_MAPPED_FILE;
  return std::system_category().message(static_cast<int>(error)) +
         (is_held ? "; Windows replaces no file that is mapped, or open elsewhere" : "");
}
[[nodiscard]] inline bool make_folder(const std::filesystem::path& path) {
  return ::CreateDirectoryW(path.c_str(), nullptr) != 0;
}

using native_name = std::filesystem::path::value_type;
inline void remove_file(const native_name* name) noexcept { ::DeleteFileW(name); }
inline void remove_folder(const native_name* name) noexcept { ::RemoveDirectoryW(name); }

}  // namespace detail

MPIROUTER_END
#endif
