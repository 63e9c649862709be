// Leaves before anything else runs where the processor lacks what this program was compiled for: before all
// other initialisers, of which the compiler may have made those instructions.
#include <cstdio>
#include <cstdlib>

namespace {

#if defined(__AVX2__)
[[gnu::constructor(101)]] void leave_if_unsupported() {  // the first that a program may have
  __builtin_cpu_init();
#if defined(__AVX512BW__)
  const bool can = __builtin_cpu_supports("x86-64-v4") != 0;
#else
  const bool can = __builtin_cpu_supports("x86-64-v3") != 0;
#endif
  if (!can) {
    std::fputs("this processor lacks the instruction set\n", stderr);
    std::_Exit(77);  // skipped
  }
}
#endif

}  // namespace
