// Leaves before anything else runs where the processor lacks what this program was compiled for.
#include <cstdio>
#include <cstdlib>

namespace {

struct leave_if_unsupported {
  leave_if_unsupported() {
#if defined(__AVX512BW__)
    const bool can = __builtin_cpu_supports("x86-64-v4") != 0;
#elif defined(__AVX2__)
    const bool can = __builtin_cpu_supports("x86-64-v3") != 0;
#else
    const bool can = true;
#endif
    if (!can) {
      std::puts("this processor lacks the instruction set");
      std::_Exit(77);  // skipped
    }
  }
};

const leave_if_unsupported first;

}  // namespace
