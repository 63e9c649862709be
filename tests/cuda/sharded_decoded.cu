// Packed experts spread over GPUs, forward and backward, against one GPU with all of them: slices of neurons,
// whole experts, both; by messages, to peers, by the communicator's sum.
#include "packed_problem.hpp"
#include "sharded_support.hpp"
#include "sharded_types.hpp"

#include <mpi_router/distributed/device_loopback.cuh>
#include <mpi_router/distributed/sharded_router_rows.cuh>
#include <mpi_router/distributed/sharded_router_rows_vjp.cuh>
#ifdef MPIROUTER_TEST_NCCL
#include <mpi_router/distributed/nccl.cuh>

#include <thread>
#endif

namespace sharded_checks {
namespace {

using problem = gpu_check::packed_problem<mxfp4_view, float>;

/// What is made of a layer.
struct made_of_packed {
  std::vector<float> rows, to_router, y, w, dual;
  std::vector<double> rayleigh;
  std::vector<status> statuses;
};

/// Experts [first, end) and of each the neurons [first_neuron, end_neuron).
struct packed_part {
  index_t first, end, first_neuron, end_neuron;
};
packed_part part_of(const expert_shape& s, index_t rank, index_t ranks, bool by_experts, bool both) {
  const auto cut = [](index_t extent, index_t r, index_t of) { return extent * r / of; };
  if (both && ranks % 2 == 0) {
    const index_t half = ranks / 2;
    return {cut(s.num_experts, rank / half, 2), cut(s.num_experts, rank / half + 1, 2),
            cut(s.ffn_dim, rank % half, half), cut(s.ffn_dim, rank % half + 1, half)};
  }
  return by_experts
             ? packed_part{cut(s.num_experts, rank, ranks), cut(s.num_experts, rank + 1, ranks), 0, s.ffn_dim}
             : packed_part{0, s.num_experts, cut(s.ffn_dim, rank, ranks), cut(s.ffn_dim, rank + 1, ranks)};
}

/// A rank's part of a problem that lies whole on the device at hand.
auto local_of(const problem& p, const packed_part& part) {
  mxfp4_view view = p.bytes.at(p.device_codes.data(), p.device_scales.data(), part.first);
  view.rows = part.end_neuron - part.first_neuron;
  view.codes = static_cast<const unsigned char*>(view.codes) + part.first_neuron * view.row_bytes;
  view.scales = static_cast<const unsigned char*>(view.scales) + part.first_neuron * view.scale_row_bytes;
  return cuda::packed_experts(view, part.end - part.first, p.bytes.expert_bytes, p.bytes.scale_bytes);
}

struct packed_memory {
  buffer<float> rows, to_router, direction, y, w, dual;
  buffer<double> norms, rayleigh;
  buffer<status> statuses;
  packed_memory(const expert_shape& s, const packed_part& part)
      : rows(size(s.num_experts * s.hidden_dim)),
        to_router(rows.host().size()),
        direction(rows.host().size()),
        y(size((part.end - part.first) * (part.end_neuron - part.first_neuron))),
        w(y.host().size()),
        dual(size((part.end - part.first) * s.hidden_dim)),
        norms(size(s.num_experts)),
        rayleigh(size(s.num_experts)),
        statuses(size(s.num_experts)) {}
  static std::size_t size(index_t n) { return static_cast<std::size_t>(n); }
  [[nodiscard]] made_of_packed read() const {
    return {rows.host(), to_router.host(), y.host(), w.host(), dual.host(), rayleigh.host(), statuses.host()};
  }
  [[nodiscard]] cuda::saved_step saved() const { return {direction.data(), norms.data(), statuses.data()}; }
  [[nodiscard]] cuda::gradient_factors factors() const { return {y.data(), w.data(), dual.data()}; }
};

matrix_view<float, device_space> matrix(const expert_shape& s, const buffer<float>& b) {
  return {b.data(), s.num_experts, s.hidden_dim, s.hidden_dim, 1};
}

template <class Comm>
std::vector<made_of_packed> on_rank(const Comm& comm, const std::vector<expert_shape>& shapes,
                                    bool by_experts, bool both, void* work = nullptr) {
  using experts_type = decltype(local_of(std::declval<const problem&>(), {}));
  using shard = cuda::decoded_shard<experts_type>;
  const auto ctx = cuda::make_context();
  cuda::step_options options;
  options.radius = router_radius::scale_free(4);
  options.degenerate = degenerate_row::keep;
  std::vector<std::unique_ptr<problem>> problems;
  std::vector<std::unique_ptr<packed_memory>> held;
  std::vector<cuda::sharded_layer<shard, const float, float>> forward;
  std::vector<cuda::sharded_layer_vjp<shard, cuda::gradient_factors, const float, const float, float>>
      backward;
  unsigned seed = 5;
  for (const expert_shape& s : shapes) {
    gpu_check::generator same(seed++);
    problems.push_back(std::make_unique<problem>(gpu_check::packed_spec{.shape = s}, same));
    const problem& p = *problems.back();
    const packed_part part = part_of(s, comm.rank(), comm.size(), by_experts, both);
    held.push_back(std::make_unique<packed_memory>(s, part));
    const packed_memory& h = *held.back();
    const shard mine = cuda::decoded_neurons(local_of(p, part), part.first, part.first_neuron, s);
    cuda::step_by_products told;
    told.rayleigh = h.rayleigh.data();
    forward.push_back({mine, p.rows(), matrix(s, h.rows), told, h.saved()});
    backward.push_back({mine, p.rows(), h.saved(), p.rows(), matrix(s, h.to_router), h.factors()});
  }
  const std::span<const cuda::sharded_layer<shard, const float, float>> f(forward);
  const std::span<
      const cuda::sharded_layer_vjp<shard, cuda::gradient_factors, const float, const float, float>>
      b(backward);
  const std::size_t forward_bytes = cuda::sharded_router_rows_workspace(ctx, f, comm);
  const std::size_t backward_bytes =
      cuda::sharded_router_rows_vjp_workspace(ctx, b, comm, gradient_mode::write);
  const buffer<unsigned char> scratch(std::max(forward_bytes, backward_bytes));
  if (work == nullptr) work = scratch.data();
  cuda::sharded_router_rows(ctx, comm, f, {work, forward_bytes}, options);
  cuda::sharded_router_rows_vjp(ctx, comm, b, gradient_mode::write, {work, backward_bytes}, options);
  must(cudaStreamSynchronize(ctx.stream));
  std::vector<made_of_packed> out;
  for (const auto& h : held) out.push_back(h->read());
  return out;
}

/// Their part of what one rank makes of all.
std::vector<float> part_of_projections(const std::vector<float>& all, const expert_shape& s,
                                       const packed_part& part) {
  std::vector<float> out;
  for (index_t e = part.first; e < part.end; ++e) {
    for (index_t f = part.first_neuron; f < part.end_neuron; ++f) {
      out.push_back(all[static_cast<std::size_t>(e * s.ffn_dim + f)]);
    }
  }
  return out;
}

void compare(const std::string& what, const std::vector<std::vector<made_of_packed>>& ranks,
             const std::vector<made_of_packed>& one, const std::vector<expert_shape>& shapes, bool by_experts,
             bool both) {
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    for (std::size_t l = 0; l < shapes.size(); ++l) {
      const made_of_packed& is = ranks[r][l];
      const made_of_packed& first = ranks[0][l];
      const std::string at = what + ", layer " + std::to_string(l) + ", rank " + std::to_string(r);
      check(same_bits(is.rows, first.rows) && same_bits(is.to_router, first.to_router) &&
                same_bits(is.rayleigh, first.rayleigh),
            at + ": other bits");
      check(same_bits(is.statuses, one[l].statuses), at + ": statuses");
      check(difference(is.rows, one[l].rows) <= 2e-6, at + ": rows");
      check(difference(is.rayleigh, one[l].rayleigh) <= 1e-6, at + ": rayleigh");
      check(difference(is.to_router, one[l].to_router) <= 1e-5, at + ": gradient to the router");
      const packed_part part =
          part_of(shapes[l], static_cast<index_t>(r), static_cast<index_t>(ranks.size()), by_experts, both);
      check(difference(is.y, part_of_projections(one[l].y, shapes[l], part)) <= 1e-5, at + ": y");
      check(difference(is.w, part_of_projections(one[l].w, shapes[l], part)) <= 1e-5, at + ": w");
      const auto d = static_cast<std::ptrdiff_t>(shapes[l].hidden_dim);
      const std::vector<float> dual(one[l].dual.begin() + part.first * d, one[l].dual.begin() + part.end * d);
      check(difference(is.dual, dual) <= 1e-5, at + ": the dual rows");
    }
  }
}

const std::vector<expert_shape> shapes{{5, 33, 160}, {0, 8, 64}, {7, 16, 256}, {2, 12, 8224}, {4, 40, 1024}};

/// The call throws usage_error, and says these words.
template <class Call>
void refused(const std::string& words, const Call& call) {
  try {
    call();
    check(false, "not refused: " + words);
  } catch (const usage_error& e) {
    check(std::string(e.what()).find(words) != std::string::npos, std::string("refused with ") + e.what());
  }
}

/// A part that begins within a block of scales; factors where something else is written.
void refusals() {
  const expert_shape s{2, 256, 64};
  fp8_view slice;
  slice.rows = 64, slice.cols = slice.row_bytes = 64, slice.scale_row_bytes = 4;
  const buffer<unsigned char> codes(2 * 64 * 64);
  slice.codes = slice.scales = codes.data();
  refused("neurons from 64 on, where each 128 share scales", [&] {
    static_cast<void>(cuda::decoded_neurons(cuda::packed_experts(slice, 2, 64 * 64, 4), 0, 64, s));
  });
  const auto mine = cuda::decoded_neurons(cuda::packed_experts(slice, 2, 64 * 64, 4), 0, 128, s);
  const packed_memory h(s, {0, 2, 128, 192});
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
  const std::vector<made_of_packed> one = on_rank(alone{}, shapes, true, false);
  for (const index_t size : {1, 2, 3, 7}) {
    for (int way = 0; way < 3; ++way) {
      const bool by_experts = way == 0, both = way == 2;
      std::vector<std::vector<made_of_packed>> messages(static_cast<std::size_t>(size)), again(messages),
          peers(messages), sums(messages);
      for (auto* const results : {&messages, &again, &peers, &sums}) {
        cuda::run_device_ranks(size, [&](const cuda::device_loopback_communicator& comm) {
          auto& mine = (*results)[static_cast<std::size_t>(comm.rank())];
          if (results == &peers) {
            const buffer<unsigned char> work(std::size_t{64} << 20);
            mine =
                on_rank(cuda::device_loopback_peer(comm, work.data()), shapes, by_experts, both, work.data());
          } else if (results == &sums) {
            mine = on_rank(cuda::backend_sum(comm), shapes, by_experts, both);
          } else {
            mine = on_rank(comm, shapes, by_experts, both);
          }
        });
      }
      const std::string what = std::string("packed ") +
                               (both         ? "experts and neurons"
                                : by_experts ? "experts"
                                             : "neurons") +
                               " on " + std::to_string(size);
      compare(what, messages, one, shapes, by_experts, both);
      compare(what + ", to peers", peers, one, shapes, by_experts, both);
      compare(what + ", sums by the communicator", sums, one, shapes, by_experts, both);
      for (std::size_t r = 0; r < messages.size(); ++r) {
        for (std::size_t l = 0; l < shapes.size(); ++l) {
          check(same_bits(messages[r][l].rows, again[r][l].rows) &&
                    same_bits(messages[r][l].rows, peers[r][l].rows) &&
                    same_bits(messages[r][l].to_router, again[r][l].to_router),
                what + ": other bits in a second run, or to peers");
        }
      }
    }
  }
}

#ifdef MPIROUTER_TEST_NCCL
void decoded_over_nccl(const std::vector<ncclComm_t>& comms) {
  must(cudaSetDevice(0));
  const std::vector<made_of_packed> one = on_rank(alone{}, shapes, true, false);
  for (const bool by_library : {false, true}) {
    std::vector<std::vector<made_of_packed>> ranks(comms.size());
    std::vector<std::thread> threads;
    for (std::size_t r = 0; r < comms.size(); ++r) {
      threads.emplace_back([&, r] {
        must(cudaSetDevice(static_cast<int>(r)));
        const cuda::nccl_communicator comm(comms[r]);
        ranks[r] = by_library ? on_rank(cuda::backend_sum(comm), shapes, false, false)
                              : on_rank(comm, shapes, false, false);
      });
    }
    for (auto& t : threads) t.join();
    compare(by_library ? "packed neurons, sums by NCCL" : "packed neurons, NCCL", ranks, one, shapes, false,
            false);
  }
}
#endif

}  // namespace sharded_checks
