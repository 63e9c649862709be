// The names of files and folders that are being written, so that a program which a signal ends can remove
// them.
#pragma once

#include <mpi_router/core/config.hpp>

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <string>

MPIROUTER_BEGIN_TYPES

namespace io {

/// A place for one name. There are as many as were ever in use at once; they are reused and never freed, so a
/// signal handler can walk over them whatever else happens. Whoever takes the name out owns it.
struct unfinished_slot {
  std::atomic<const std::string*> name = nullptr;
  unfinished_slot* next = nullptr;
};
static_assert(std::atomic<const std::string*>::is_always_lock_free, "a signal handler takes names out");

/// One list for all of a program, whatever its parts are compiled for.
inline std::atomic<unfinished_slot*> unfinished_slots = nullptr;

}  // namespace io

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

namespace detail {

/// Puts the name into a free slot, or a new one.
inline io::unfinished_slot& put_unfinished(const std::string* name) {
  for (auto* slot = io::unfinished_slots.load(); slot != nullptr; slot = slot->next) {
    const std::string* free = nullptr;
    if (slot->name.compare_exchange_strong(free, name)) {
      return *slot;
    }
  }
  auto* const slot = new io::unfinished_slot{name, io::unfinished_slots.load()};
  while (!io::unfinished_slots.compare_exchange_weak(slot->next, slot)) {
  }
  return *slot;
}

}  // namespace detail

/// While it lives, its path is among those that remove_unfinished() removes. To be made before the file is,
/// so that no signal finds the file without its name.
class unfinished {
 public:
  explicit unfinished(const std::filesystem::path& path)
      : slot_(detail::put_unfinished(new std::string(path.string()))) {}
  unfinished(const unfinished&) = delete;
  unfinished& operator=(const unfinished&) = delete;
  ~unfinished() { delete slot_.name.exchange(nullptr); }

 private:
  io::unfinished_slot& slot_;
};

/// Removes the temporary files of every atomic_file and atomic_folder of this process that is neither
/// committed nor destroyed. Async-signal-safe: meant for the handler of SIGINT and its like, which then ends
/// the program. The library installs no handler.
inline void remove_unfinished() noexcept {
  const int error_before = errno;
  const auto visit = [](int (*remove)(const char*)) {
    for (auto* slot = io::unfinished_slots.load(); slot != nullptr; slot = slot->next) {
      if (const std::string* const name = slot->name.exchange(nullptr); name != nullptr) {
        remove(name->c_str());
        slot->name = name;
      }
    }
  };
  visit(::unlink);
  visit(::rmdir);  // folders, now that they are empty
  errno = error_before;
}

MPIROUTER_END
