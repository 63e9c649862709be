// An executable's own write(2) and its like come before those of the C library, and of the sanitizers.
#include "interposed.hpp"

#include <dlfcn.h>
#include <sys/types.h>

#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <map>

namespace io_test {

namespace {

struct state {
  bool active = false;
  std::vector<rule> rules;
  std::vector<std::string> calls;
  std::map<std::string, int> counts;
  std::map<int, std::string> names;  ///< of the open files
  int flags = 0;
};
state& now() {
  static state the;
  return the;
}

std::string last_part(const std::string& path) { return path.substr(path.rfind('/') + 1); }

template <class Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

/// Notes a call and says which rule is for it; null if none is.
const rule* note(const std::string& call, const std::string& rest) {
  auto& s = now();
  s.calls.push_back(call + " " + rest);
  const int of_its_kind = ++s.counts[call];
  const int of_all = static_cast<int>(s.calls.size());
  for (const auto& r : s.rules) {
    if ((r.call == call && (r.which == 0 || r.which == of_its_kind)) ||
        (r.call.empty() && r.which == of_all)) {
      return &r;
    }
  }
  return nullptr;
}

/// Follows a rule around the real call.
template <class Result, class Call>
Result follow(const rule* r, Call call) {
  if (r == nullptr) {
    return call();
  }
  if (r->what == act::fail) {
    errno = r->value;
    return -1;
  }
  if (r->what == act::die && r->value == 0) {
    ::raise(SIGKILL);
  }
  const Result result = call();
  if (r->what == act::die) {
    ::raise(SIGKILL);
  }
  return result;
}

}  // namespace

script::script(std::vector<rule> rules) {
  now() = {};
  now().rules = std::move(rules);
  now().active = true;
}
script::~script() { now().active = false; }
const std::vector<std::string>& script::calls() const { return now().calls; }
int script::flags() const { return now().flags; }

}  // namespace io_test

extern "C" {

int open(const char* path, int flags, ...) {
  using namespace io_test;
  va_list rest;
  va_start(rest, flags);
  const unsigned mode = va_arg(rest, unsigned);  // unused by open(2) where nothing is made
  va_end(rest);
  const auto real = [&] { return next<int(const char*, int, ...)>("open")(path, flags, mode); };
  if (!now().active) {
    return real();
  }
  const rule* const r = note("open", last_part(path));
  now().flags = now().calls.size() == 1 ? flags : now().flags;
  if (r != nullptr && r->what == act::plant) {
    std::FILE* const planted = std::fopen(path, "w");
    std::fputs("someone else's", planted);
    std::fclose(planted);
    return real();
  }
  const int fd = follow<int>(r, real);
  now().names[fd] = last_part(path);
  return fd;
}

ssize_t write(int fd, const void* bytes, size_t count) {
  using namespace io_test;
  const auto real = [&](size_t some) {
    return next<ssize_t(int, const void*, size_t)>("write")(fd, bytes, some);
  };
  if (!now().active) {
    return real(count);
  }
  const rule* const r = note("write", now().names[fd] + " " + std::to_string(count));
  if (r != nullptr && r->what == act::swallow) {
    return static_cast<ssize_t>(count);
  }
  const bool shortened = r != nullptr && r->what == act::shorten && static_cast<size_t>(r->value) < count;
  return follow<ssize_t>(r, [&] { return real(shortened ? static_cast<size_t>(r->value) : count); });
}

int fsync(int fd) {
  using namespace io_test;
  const auto real = [&] { return next<int(int)>("fsync")(fd); };
  return now().active ? follow<int>(note("fsync", now().names[fd]), real) : real();
}

void* mmap(void* wanted, size_t size, int protection, int flags, int fd, off_t offset) noexcept {
  using namespace io_test;
  const rule* const r = now().active ? note("mmap", now().names[fd]) : nullptr;
  if (r != nullptr && r->what == act::fail) {
    errno = r->value;
    return reinterpret_cast<void*>(-1);
  }
  return next<void*(void*, size_t, int, int, int, off_t)>("mmap")(wanted, size, protection, flags, fd,
                                                                  offset);
}

int rename(const char* from, const char* to) noexcept {
  using namespace io_test;
  const auto real = [&] { return next<int(const char*, const char*)>("rename")(from, to); };
  return now().active ? follow<int>(note("rename", last_part(to)), real) : real();
}

}  // extern "C"
