// The system calls that read a file or put it in place, under a script: which of them fails, falls short, or
// is the last.
#pragma once

#include <string>
#include <vector>

namespace io_test {

enum class act {
  fail,     ///< the call does nothing and reports `value` as its error
  shorten,  ///< write(2) takes at most `value` bytes
  swallow,  ///< write(2) says that it took all, and writes nothing
  plant,    ///< someone else makes a file of that name just before open(2)
  die,      ///< the process is killed: before the call if `value` is 0, else after it
};

struct rule {
  std::string call;  ///< "open", "mmap", "write", "fsync" or "rename"; empty for each of them
  int which = 0;     ///< the how manieth of these calls it is for, from 1 on; 0 for all of them
  act what = act::fail;
  int value = 0;
};

/// While it lives, the calls of this process follow the rules. They are noted: "open NAME", "write NAME 12",
/// "fsync NAME", "rename NAME", "mmap NAME", where NAME is the last part of the path.
class script {
 public:
  explicit script(std::vector<rule> rules = {});
  script(const script&) = delete;
  script& operator=(const script&) = delete;
  ~script();

  [[nodiscard]] const std::vector<std::string>& calls() const;
  /// The flags of the first open(2).
  [[nodiscard]] int flags() const;
};

}  // namespace io_test
