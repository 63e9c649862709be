// Checks everything in cuda/ on the current device, or what one name stands for: gpu_check [effort [gram]].
// Exit code 77 where there is no device.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "gpu_checks.hpp"
#include "gpu_support.hpp"

int main(int argc, char** argv) {
  using namespace gpu_check;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // so that what hangs can be seen
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device: nothing checked\n");
    return 77;
  }
  const int effort = argc > 1 ? std::atoi(argv[1]) : 40;
  try {
    cuda::context ctx = cuda::make_context();
    std::printf("sm_%d, %d multiprocessors, effort %d\n", ctx.capability, ctx.multiprocessors, effort);
    if (argc <= 2 || std::strcmp(argv[2], "gram") == 0) {
      check_gram(ctx, effort);
    }
    if (argc > 2) {
      std::printf("%d checks of %s, %d failures\n", checks, argv[2], failures);
      return failures == 0 && checks > 0 ? 0 : 1;
    }
    check_refusals(ctx);
    check_edges(ctx, effort);
    check_forward(ctx, effort);
    check_backward(ctx, effort);
    check_gating(ctx, effort);
    if (ctx.capability >= 90) {
      std::printf("the same along the path of sm_80\n");
      cuda::context old = ctx;
      old.capability = 80;
      check_edges(old, effort);
      check_forward(old, effort);
      check_backward(old, effort);
    }
    for (const forced_device& d : forced_devices(ctx)) {
      std::printf("as on %s\n", d.like);
      check_forward(d.ctx, effort);
      check_backward(d.ctx, effort);
    }
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    ++failures;
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
