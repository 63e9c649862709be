// Devices and shapes for the laws of the plans, which hold for all of them.
#pragma once

#include <mpi_router/cuda/detail/plan/forward_path.hpp>
#include <mpi_router/cuda/detail/plan/vjp_plan.hpp>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

namespace plan_test {

using namespace mpi_router;
using namespace mpi_router::cuda::detail;

/// A device whose multiprocessors come in parts of 18, which no cluster spans, and a rest.
[[nodiscard]] inline cuda::context device(int multiprocessors, int capability, int shared_kib) {
  cuda::context ctx;
  ctx.multiprocessors = multiprocessors;
  ctx.capability = capability;
  ctx.shared_memory = static_cast<std::size_t>(shared_kib) * 1024;
  for (int log = 0; log < 4; ++log) {
    ctx.clusters[log] = multiprocessors / 18 * (18 >> log) + (multiprocessors % 18 >> log);
  }
  return ctx;
}

/// From a small card to one with more multiprocessors than there are, with the shared memory of sm_86, sm_80
/// and sm_90; clusters stand in the table also where the capability says that there are none.
[[nodiscard]] inline std::vector<cuda::context> devices() {
  std::vector<cuda::context> all;
  for (const int capability : {80, 90, 100, 120}) {
    for (const int kib : {99, 163, 227}) {
      for (const int multiprocessors : {20, 46, 58, 84, 108, 114, 132, 148, 170}) {
        all.push_back(device(multiprocessors, capability, kib));
      }
    }
  }
  return all;
}

/// Every D up to 64, the neighbours of powers of two, and D of models.
[[nodiscard]] inline std::vector<index_t> hidden_dims() {
  std::vector<index_t> all;
  for (index_t d = 1; d <= 64; ++d) {
    all.push_back(d);
  }
  for (index_t power = 128; power <= 32768; power *= 2) {
    for (const index_t offset : {-8, -1, 0, 1, 8}) {
      if (power + offset <= 32768) {
        all.push_back(power + offset);
      }
    }
  }
  for (const index_t d : {768, 2880, 5120, 6144, 7168, 12288, 20000, 24576}) {
    all.push_back(d);
  }
  return all;
}

/// use(device, shape) for every device and D, and small, odd and real [N, F]; `more` is added to these.
template <class Use>
void for_each_device_and_shape(std::initializer_list<expert_shape> more, const Use& use) {
  std::vector<expert_shape> shapes{{1, 1, 0},     {1, 2047, 0}, {3, 9, 0},     {8, 14336, 0}, {32, 1024, 0},
                                   {64, 1024, 0}, {60, 1, 0},   {128, 768, 0}, {129, 96, 0},  {384, 2048, 0}};
  shapes.insert(shapes.end(), more);
  for (const cuda::context& ctx : devices()) {
    for (const index_t d : hidden_dims()) {
      for (expert_shape s : shapes) {
        s.hidden_dim = d;
        use(ctx, s);
      }
    }
  }
}

/// use(device, shape) for every number of multiprocessors, and for every D up to 2048, with a few of the
/// rest.
template <class Use>
void for_each_count_and_dim(const Use& use) {
  for (int multiprocessors = 20; multiprocessors <= 170; ++multiprocessors) {
    for (const int capability : {80, 90}) {
      for (const int kib : {99, 163, 227}) {
        for (const index_t d : {1024, 2880, 7168}) {
          use(device(multiprocessors, capability, kib), expert_shape{64, 1024, d});
          use(device(multiprocessors, capability, kib), expert_shape{129, 96, d});
        }
      }
    }
  }
  for (index_t d = 1; d <= most_hidden; ++d) {
    for (const cuda::context& ctx : {device(132, 90, 227), device(84, 80, 99)}) {
      use(ctx, expert_shape{64, 1024, d});
      use(ctx, expert_shape{3, 9, d});
    }
  }
}

[[nodiscard]] inline std::string name(const cuda::context& ctx, const expert_shape& s) {
  return core::concatenate("[", s.num_experts, ", ", s.ffn_dim, ", ", s.hidden_dim, "] on ",
                           ctx.multiprocessors, " multiprocessors of capability ", ctx.capability, " with ",
                           ctx.shared_memory, " bytes");
}

/// The first law that does not hold; all of them are asked, so that one sweep of a million plans has few
/// assertions.
class laws {
 public:
  void hold(bool law, const char* what) {
    if (!law && broken_ == nullptr) {
      broken_ = what;
    }
  }
  [[nodiscard]] bool kept() const { return broken_ == nullptr; }
  [[nodiscard]] const char* broken() const { return broken_ == nullptr ? "" : broken_; }

 private:
  const char* broken_ = nullptr;
};

/// All numbers of many plans in one (FNV-1a): whether they are those that they were.
class digest {
 public:
  template <class... Numbers>
  void add(Numbers... numbers) {
    (take(static_cast<std::uint64_t>(static_cast<std::int64_t>(numbers))), ...);
  }
  void add_partition(const partition& p) { add(p.experts, p.tiles_per_expert, p.blocks, p.whole, p.team); }
  [[nodiscard]] std::uint64_t value() const { return value_; }

 private:
  void take(std::uint64_t number) {
    for (int byte = 0; byte < 8; ++byte) {
      value_ = (value_ ^ (number >> (8 * byte) & 0xffU)) * 1099511628211U;
    }
  }
  std::uint64_t value_ = 14695981039346656037U;
};

[[nodiscard]] inline bool is_power_of_two(int x) { return x > 0 && (x & (x - 1)) == 0; }

/// As much as any plan wants, of which no byte is touched.
alignas(256) inline unsigned char memory[1 << 26];

/// Bytes from the start of the memory.
template <class T>
[[nodiscard]] std::intptr_t offset(const T* p) {
  return reinterpret_cast<const unsigned char*>(p) - memory;
}

}  // namespace plan_test
