// Checks everything in cuda/ on the current device, or one part of it ("list" names them), so that parts can
// run beside each other: cuda_check [effort [part]]. Exit code 77 where there is no device.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "gpu_checks.hpp"
#include "gpu_support.hpp"

namespace {
struct part {
  std::string name;
  std::function<void()> check;
};

std::vector<part> parts_of(const mpi_router::cuda::context& ctx, int effort) {
  using namespace gpu_check;
  std::vector<part> parts;
  const auto steps = [&parts, effort](const std::string& like, const mpi_router::cuda::context& device) {
    parts.push_back({"edges" + like, [device, effort] { check_edges(device, effort); }});
    parts.push_back({"forward" + like, [device, effort] { check_forward(device, effort); }});
    parts.push_back({"backward" + like, [device, effort] { check_backward(device, effort); }});
  };
  parts.push_back({"gram", [&ctx, effort] { check_gram(ctx, effort); }});
  parts.push_back({"refusals", [&ctx] { check_refusals(ctx); }});
  parts.push_back({"decoded", [&ctx, effort] { check_decoded(ctx, effort); }});
  parts.push_back({"gating", [&ctx, effort] { check_gating(ctx, effort); }});
  steps("", ctx);
  for (const forced_device& d : forced_devices(ctx)) {
    steps(std::string(" as on ") + d.like, d.ctx);
  }
  return parts;
}
}  // namespace

int main(int argc, char** argv) {
  using namespace gpu_check;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // so that what hangs can be seen
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device: nothing checked\n");
    return 77;
  }
  const int effort = argc > 1 ? std::atoi(argv[1]) : 40;
  const std::string wanted = argc > 2 ? argv[2] : "";
  try {
    const cuda::context ctx = cuda::make_context();
    if (wanted != "list") {
      std::printf("sm_%d, %d multiprocessors, effort %d\n", ctx.capability, ctx.multiprocessors, effort);
    }
    for (const part& p : parts_of(ctx, effort)) {
      if (wanted == "list") {
        std::printf("%s\n", p.name.c_str());
      } else if (wanted.empty() || wanted == p.name) {
        const int before = checks;
        std::printf("%s\n", p.name.c_str());
        p.check();
        std::printf("%s: %d checks\n", p.name.c_str(), checks - before);
      }
    }
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    ++failures;
  }
  if (wanted == "list") {
    return failures == 0 ? 0 : 1;
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures == 0 && checks > 0 ? 0 : 1;
}
