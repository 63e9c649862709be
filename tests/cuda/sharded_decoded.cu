// Experts that are decoded as they are read, spread over GPUs, forward and backward, against one GPU with all
// of them: slices of neurons, whole experts, both, rows of the flat [N·F, D], slices of D; by messages, to
// peers, by the communicator's sum.
#include "packed_ranks.hpp"
#include "sharded_types.hpp"

#ifdef MPIROUTER_TEST_NCCL
#include <mpi_router/distributed/nccl.cuh>

#include <thread>
#endif

namespace sharded_checks {
namespace {

using mxfp4_layer = packed_layer<mxfp4_view>;

/// A part that goes beyond the block of scales that it begins in; factors where something else is written.
void refusals() {
  const expert_shape s{2, 256, 64};
  fp8_view slice;
  slice.rows = 64, slice.cols = slice.row_bytes = 64, slice.scale_row_bytes = 4;
  const buffer<unsigned char> codes(2 * 64 * 64);
  slice.codes = slice.scales = codes.data();
  refused("64 neurons from 65 on, where each 128 share scales", [&] {
    static_cast<void>(cuda::decoded_neurons(cuda::packed_experts(slice, 2, 64 * 64, 4), 0, 65, s));
  });
  const auto mine = cuda::decoded_neurons(cuda::packed_experts(slice, 2, 64 * 64, 4), 0, 128, s);
  const packed_memory h(s, {0, 2, 128, 192, 0, 64});
  const buffer<float> router(h.rows.host()), upstream(h.rows.host());
  const auto refuses = [&](const std::string& words, const cuda::gradient_factors& factors) {
    const cuda::sharded_layer_vjp<std::remove_cvref_t<decltype(mine)>, cuda::gradient_factors, float, float,
                                  float>
        layer{mine, matrix(s, router), h.saved(), matrix(s, upstream), matrix(s, h.to_router), factors};
    refused(words, [&] {
      const auto ctx = cuda::make_context();
      const std::span one(&layer, 1);
      const std::size_t bytes =
          cuda::sharded_router_rows_vjp_workspace(ctx, one, alone{}, gradient_mode::write);
      const buffer<unsigned char> scratch(bytes);
      cuda::sharded_router_rows_vjp(ctx, alone{}, one, gradient_mode::write, {scratch.data(), bytes},
                                    {.radius = 1.0});
    });
  };
  refuses("a projection and the gradient to a router overlap", {h.to_router.data(), h.w.data(), nullptr});
  refuses("the dual rows and the router overlap", {h.y.data(), h.w.data(), router.data()});
  refuses("a projection and a dual projection overlap", {h.y.data(), h.y.data() + 1, nullptr});
}

}  // namespace

void decoded_on_one_gpu() {
  refusals();
  const std::vector<made_of_packed> one = on_one_rank<mxfp4_layer>();
  for (const packed_kind kind : {packed_kind::experts, packed_kind::neurons, packed_kind::both}) {
    for (const index_t size : {1, 2, 3, 7}) {
      packed_case c{kind, {}};
      for (index_t r = 0; r <= size; ++r) c.cuts.push_back(r);
      on_threads<packed_kind::neurons, mxfp4_layer>(
          std::string("packed ") + name_of(kind) + " on " + std::to_string(size), c, one);
    }
  }
  rows_and_columns<mxfp4_layer>("mxfp4");
  rows_and_columns<formula_layer>("a functor");
}

#ifdef MPIROUTER_TEST_NCCL
namespace {

template <packed_kind kind>
void over_nccl(const std::vector<ncclComm_t>& comms) {
  must(cudaSetDevice(0));
  const std::vector<made_of_packed> one = on_one_rank<mxfp4_layer>();
  packed_case c{kind, {}};
  for (std::size_t r = 0; r <= comms.size(); ++r) c.cuts.push_back(static_cast<index_t>(r));
  for (const bool by_library : {false, true}) {
    std::vector<std::vector<made_of_packed>> ranks(comms.size());
    std::vector<std::thread> threads;
    for (std::size_t r = 0; r < comms.size(); ++r) {
      threads.emplace_back([&, r] {
        must(cudaSetDevice(static_cast<int>(r)));
        const cuda::nccl_communicator comm(comms[r]);
        ranks[r] = by_library ? on_rank<kind, mxfp4_layer>(cuda::backend_sum(comm), c)
                              : on_rank<kind, mxfp4_layer>(comm, c);
      });
    }
    for (auto& t : threads) t.join();
    must(cudaSetDevice(0));
    compare<mxfp4_layer>(std::string("packed ") + name_of(kind) + (by_library ? ", sums by NCCL" : ", NCCL"),
                         ranks, one, c);
  }
}

}  // namespace

void decoded_over_nccl(const std::vector<ncclComm_t>& comms) {
  over_nccl<packed_kind::neurons>(comms);
  over_nccl<packed_kind::rows>(comms);
  over_nccl<packed_kind::columns>(comms);
}
#endif

}  // namespace sharded_checks
