// The steps of a forward, one after the other.
#pragma once

#include <mpi_router/cuda/detail/finish/expert.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

/// step(args, is_first) options.steps times, rows and statuses between them in `memory`, a plan's.
template <class Memory, class Step>
void take_steps(const Memory& memory, index_t hidden, const any_matrix& router, const any_matrix& rows,
                double radius, const step_by_products& told, const saved_step& saved,
                const step_options& options, const peer_copies& peers, const Step& take) {
  any_matrix from = router;
  for (index_t step = 0; step < options.steps; ++step) {
    const bool last = step + 1 == options.steps;
    const any_matrix to = last ? rows : any_matrix(memory.between[step % 2], hidden);
    const finish_args args{from,
                           to,
                           last ? radius : 1.0,
                           static_cast<int>(hidden),
                           options.degenerate,
                           step == 0 ? nullptr : memory.statuses,
                           memory.statuses,
                           last ? told : step_by_products{},
                           last ? saved : saved_step{},
                           last ? peers : peer_copies{}};
    take(args, step == 0);
    from = to;
  }
}

MPIROUTER_CUDA_DETAIL_END
