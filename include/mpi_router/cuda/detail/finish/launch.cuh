// The launches of the second kernel.
#pragma once

#include <mpi_router/cuda/detail/device/launch.cuh>
#include <mpi_router/cuda/detail/finish/kernel.cuh>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

/// As many threads as there may be: where D is small, the last warp has no columns, and tells of the step
/// meanwhile. But where there are more experts than run at once, as few as can keep a row in their registers,
/// so that more of them are at work.
[[nodiscard]] inline launch_shape one_block_each(index_t at_once, index_t experts, int hidden) {
  int threads = finish_most_threads;
  while (experts > at_once && threads > finish_least_threads && hidden <= finish_kept * 4 * (threads / 2)) {
    threads /= 2;
  }
  return {static_cast<unsigned>(experts), static_cast<unsigned>(threads)};
}

/// use(std::integral_constant<int, kept>) for the fours of an image that a thread keeps, 0 where it reads the
/// image twice.
template <class Use>
void with_kept(const launch_shape& shape, int hidden, const Use& use) {
  const int each = 4 * static_cast<int>(shape.threads);
  if (hidden <= each) {
    use(std::integral_constant<int, 1>());
  } else if (hidden <= finish_kept_columns) {
    use(std::integral_constant<int, finish_kept>());
  } else {
    use(std::integral_constant<int, 0>());
  }
}

template <class Images>
void collect(const context& ctx, index_t experts, const collect_args<Images>& args) {
  launch("collect_kernel", ctx, one_block_each(ctx.multiprocessors, experts, args.hidden),
         collect_kernel<Images>, args);
}

template <class Images>
void finish(const context& ctx, index_t experts, const Images& images, const finish_args& args) {
  const launch_shape shape = one_block_each(ctx.multiprocessors, experts, args.hidden);
  with_kept(shape, args.hidden, [&]<int kept>(std::integral_constant<int, kept>) {
    launch("finish_kernel", ctx, shape, finish_kernel<Images, kept>, images, args);
  });
}

MPIROUTER_CUDA_DETAIL_END
