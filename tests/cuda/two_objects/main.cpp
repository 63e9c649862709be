// Calls both objects in turn, twice: a kernel launched through the other object's stub would write nothing.
#include <cmath>
#include <cstdio>
#include <cstring>

extern "C" int run_first(float* result);
extern "C" int run_second(float* result);

int main() {
  constexpr int size = 3 * 64;
  float results[4][size] = {};
  for (int i = 0; i < 4; ++i) {
    const int code = i % 2 == 0 ? run_first(results[i]) : run_second(results[i]);
    if (code != 0) {
      std::printf(code == 77 ? "no CUDA device: nothing checked\n" : "object %d failed\n", i % 2);
      return code;
    }
  }
  for (int i = 0; i < 4; ++i) {
    for (int e = 0; e < 3; ++e) {
      float square = 0;
      for (int d = 0; d < 64; ++d) {
        square += results[i][e * 64 + d] * results[i][e * 64 + d];
      }
      if (!(std::fabs(square - 1.0F) < 1e-5F)) {
        std::printf("FAILED: call %d, row %d has norm² %g\n", i, e, static_cast<double>(square));
        return 1;
      }
    }
    if (std::memcmp(results[i], results[0], sizeof(results[0])) != 0) {
      std::printf("FAILED: call %d differs from the first\n", i);
      return 1;
    }
  }
  std::printf("two shared objects, four calls, the same rows\n");
  return 0;
}
