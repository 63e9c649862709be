// Mistakes at the C interface: a code, a text that names the argument and its shape, nothing written, and a
// process that lives on.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>

#include "arrays.hpp"

using namespace c_tests;

namespace {

/// Calls that work, until something in them is changed.
struct working {
  static constexpr index_t n = 2, f = 3, d = 4;
  std::vector<float> gates = std::vector<float>(n * f * d, 0.5F), router = std::vector<float>(n * d, 1),
                     rows = std::vector<float>(n * d, 7), grad_router = std::vector<float>(n * d, 7),
                     grad_gates = std::vector<float>(n * f * d, 7);
  std::vector<double> taped = std::vector<double>(1000), factored = std::vector<double>(1000);
  mpi_router_experts experts = mpi_router_experts_nfd(gates.data(), MPIROUTER_F32, n, f, d);
  mpi_router_experts to_experts = mpi_router_experts_nfd(grad_gates.data(), MPIROUTER_F32, n, f, d);
  mpi_router_matrix in = mpi_router_row_major(router.data(), MPIROUTER_F32, n, d);
  mpi_router_matrix out = mpi_router_row_major(rows.data(), MPIROUTER_F32, n, d);
  mpi_router_matrix to_router = mpi_router_row_major(grad_router.data(), MPIROUTER_F32, n, d);
  mpi_router_options options = mpi_router_default_options();
  mpi_router_by_products told{};
  mpi_router_buffer tape{taped.data(), 8000}, factors{factored.data(), 8000};
  std::int32_t mode = MPIROUTER_WRITE;
  mpi_router_threads threads{};

  mpi_router_code forward() { return mpi_router_rows(&experts, &in, &options, &out, &told, &tape, &threads); }
  mpi_router_code backward() {
    return mpi_router_rows_vjp(&experts, &in, &options, &tape, &out, &to_router, &to_experts, mode, &threads);
  }
  mpi_router_code in_factors() {
    return mpi_router_rows_vjp_factored(&experts, &in, &options, &tape, &out, &to_router, &factors, mode,
                                        &threads);
  }
};

bool says(const char* part) {
  CAPTURE(mpi_router_last_error());
  const bool found = std::strstr(mpi_router_last_error(), part) != nullptr;
  CHECK(found);
  return found;
}

/// change(problem) makes the forward fail with the code and the text, and leaves the rows as they were.
template <class Change>
void refuses(mpi_router_code code, const char* text, const Change& change) {
  working w;
  change(w);
  CAPTURE(text);
  CHECK(w.forward() == code);
  says(text);
  CHECK(w.rows == std::vector<float>(working::n * working::d, 7));
}
template <class Change>
void backward_refuses(mpi_router_code code, const char* text, const Change& change) {
  working w;
  CHECK(w.forward() == MPIROUTER_OK);
  change(w);
  CAPTURE(text);
  CHECK(w.backward() == code);
  says(text);
  CHECK(w.grad_gates == std::vector<float>(working::n * working::f * working::d, 7));
}

constexpr auto wrong = MPIROUTER_INVALID_ARGUMENT;
constexpr std::int64_t largest = std::numeric_limits<std::int64_t>::max();

}  // namespace

TEST_CASE("what works") {
  working w;
  CHECK(w.forward() == MPIROUTER_OK);
  CHECK(w.backward() == MPIROUTER_OK);
  CHECK(w.in_factors() == MPIROUTER_OK);
}

TEST_CASE("null pointers") {
  working w;
  CHECK(mpi_router_rows(nullptr, &w.in, nullptr, &w.out, nullptr, nullptr, nullptr) == wrong);
  says("mpi_router_rows: experts is null");
  CHECK(mpi_router_rows(&w.experts, &w.in, nullptr, nullptr, nullptr, nullptr, nullptr) == wrong);
  says("rows is null");
  CHECK(mpi_router_tape_size(&w.experts, nullptr, nullptr) == wrong);
  says("bytes is null");
  w.experts.data = nullptr;  // sizes need none
  std::int64_t bytes = 0;
  CHECK(mpi_router_tape_size(&w.experts, nullptr, &bytes) == MPIROUTER_OK);
  CHECK(bytes == 4 * 2 * (4 + 2));
  CHECK(mpi_router_factors_size(&w.experts, nullptr, &bytes) == MPIROUTER_OK);
  CHECK(bytes == 4 * 2 * 2 * (3 + 4));
  w.experts.device = 7;
  CHECK(mpi_router_tape_size(&w.experts, nullptr, &bytes) == wrong);
  says("experts has the device 7");
  refuses(wrong, "experts of shape [2, 3, 4] has null data", [](working& x) { x.experts.data = nullptr; });
  refuses(wrong, "router of shape [2, 4] has null data", [](working& x) { x.in.data = nullptr; });
  refuses(wrong, "tape has null data", [](working& x) { x.tape.data = nullptr; });
  void* table[2] = {w.gates.data(), nullptr};
  refuses(wrong, "experts of shape [2, 3, 4] have a null pointer for expert 1",
          [&](working& x) { x.experts.pointers = table; });
}

TEST_CASE("types and devices") {
  refuses(wrong, "router has the dtype 0", [](working& x) { x.in.dtype = 0; });
  refuses(wrong, "experts has the dtype 5", [](working& x) { x.experts.dtype = 5; });
  refuses(MPIROUTER_UNSUPPORTED, "router is f64, and the sums are taken in f32",
          [](working& x) { x.in = mpi_router_row_major(x.taped.data(), MPIROUTER_F64, 2, 4); });
  refuses(MPIROUTER_UNSUPPORTED, "experts is on a GPU",
          [](working& x) { x.experts.device = MPIROUTER_CUDA; });
  refuses(wrong, "rows has the device 7", [](working& x) { x.out.device = 7; });
  refuses(wrong, "router is not aligned to its type, f32",
          [](working& x) { x.in.data = reinterpret_cast<char*>(x.router.data()) + 1; });
  backward_refuses(MPIROUTER_UNSUPPORTED, "grad_experts is bf16 and experts is f32",
                   [](working& x) { x.to_experts.dtype = MPIROUTER_BF16; });
}

TEST_CASE("shapes") {
  refuses(wrong, "experts has the shape [2, -3, 4], with a negative extent",
          [](working& x) { x.experts.shape[1] = -3; });
  refuses(wrong, "router is [2, 5], not [2, 4], as the experts [N = 2, F = 3, D = 4] ask",
          [](working& x) { x.in.shape[1] = 5; });
  refuses(wrong, "rows is [1, 4], not [2, 4]", [](working& x) { x.out.shape[0] = 1; });
  refuses(wrong, "experts of shape [9223372036854775807, 3, 4]",
          [](working& x) { x.experts.shape[0] = largest; });
  refuses(wrong, "experts of shape [9223372036854775807, 3, 4] and strides [0, 4, 1] does not fit in memory",
          [](working& x) {
            x.experts.shape[0] = largest;
            x.experts.strides[0] = 0;
          });
  refuses(wrong, "does not fit in memory", [](working& x) { x.in.strides[0] = largest; });
  refuses(wrong, "does not fit in memory", [](working& x) {
    x.experts = mpi_router_experts_nfd(x.gates.data(), MPIROUTER_F32, 1, std::int64_t{1} << 40,
                                       std::int64_t{1} << 40);
  });
  refuses(wrong, "negative extent",
          [](working& x) { x.experts = mpi_router_experts_ndf(x.gates.data(), MPIROUTER_F32, 2, -1, 4); });
  backward_refuses(wrong, "grad_experts is [2, 3, 3], experts is [2, 3, 4]",
                   [](working& x) { x.to_experts.shape[2] = 3; });
  backward_refuses(wrong, "grad_router is [2, 3], not [2, 4]", [](working& x) { x.to_router.shape[1] = 3; });
}

TEST_CASE("options") {
  refuses(wrong, "steps is 0", [](working& x) { x.options.steps = 0; });
  refuses(wrong, "does not fit in memory", [](working& x) { x.options.steps = largest; });
  refuses(wrong, "radius", [](working& x) { x.options.radius = 0; });
  refuses(wrong, "radius", [](working& x) { x.options.radius = std::numeric_limits<double>::quiet_NaN(); });
  refuses(wrong, "radius_rule is 2", [](working& x) { x.options.radius_rule = 2; });
  refuses(wrong, "degenerate is 256", [](working& x) { x.options.degenerate = 256; });
  refuses(wrong, "through is -1", [](working& x) { x.options.through = -1; });
  refuses(wrong, "1 experts in all", [](working& x) { x.options.total_experts = 1; });
  backward_refuses(wrong, "mode is 2", [](working& x) { x.mode = 2; });
  backward_refuses(wrong, "through is none", [](working& x) { x.options.through = MPIROUTER_THROUGH_NONE; });
}

TEST_CASE("buffers that are too small") {
  refuses(wrong, "tape has 47 bytes, not 48", [](working& x) { x.tape.bytes = 47; });
  refuses(wrong, "tape is not aligned as a double",
          [](working& x) { x.tape.data = reinterpret_cast<char*>(x.taped.data()) + 4; });
  working w;
  w.factors.bytes = 111;
  CHECK(w.in_factors() == wrong);
  says("factors has 111 bytes, not 112");
}

TEST_CASE("overlap") {
  refuses(wrong, "rows and router overlap", [](working& x) { x.in.data = x.rows.data(); });
  refuses(wrong, "rows and experts overlap", [](working& x) { x.experts.data = x.rows.data() - 20; });
  refuses(wrong, "tape and router overlap", [](working& x) { x.tape.data = x.in.data; });
  refuses(wrong, "cosine and rayleigh overlap",
          [](working& x) { x.told.cosine = x.told.rayleigh = x.factored.data(); });
  backward_refuses(wrong, "grad_experts and experts overlap",
                   [](working& x) { x.experts.data = x.grad_gates.data(); });
  backward_refuses(wrong, "grad_router and router overlap", [](working& x) { x.to_router = x.in; });
  working w;  // a gradient in place is none
  CHECK(w.forward() == MPIROUTER_OK);
  w.to_router = w.out;
  CHECK(w.backward() == MPIROUTER_OK);
}

TEST_CASE("a parallel_for that leaves tasks out, or invents some") {
  refuses(wrong, "was asked for the tasks 0 … 1 and ran 1 of them", [](working& x) {
    x.threads.parallel_for = [](void*, std::int64_t, void (*task)(void*, std::int64_t), void* data) {
      task(data, 0);
    };
  });
  working w;
  w.threads.parallel_for = [](void*, std::int64_t count, void (*task)(void*, std::int64_t), void* data) {
    for (std::int64_t i = 0; i <= count; ++i) task(data, i);
  };
  CHECK(w.forward() == wrong);
  says("and others");
  for (const std::int64_t last : {0, 1}) {  // {0, 0}, and {0, 1, 1}
    static std::int64_t again;
    again = last;
    w.threads.parallel_for = [](void*, std::int64_t count, void (*task)(void*, std::int64_t), void* data) {
      for (std::int64_t i = 0; i < count; ++i) task(data, std::min(i, again));
      task(data, again);
    };
    CHECK(w.forward() == wrong);
    says("some twice");
  }
}

TEST_CASE("written memory whose elements are one") {
  refuses(wrong, "rows is written, and with the strides [0, 1]", [](working& x) { x.out.strides[0] = 0; });
  refuses(wrong, "rows is written, and with the strides [2, 1]", [](working& x) { x.out.strides[0] = 2; });
  refuses(wrong, "with the strides [-1, 1]", [](working& x) { x.out.strides[0] = -1; });
  working w;
  w.out.strides[0] = 1;  // [D, N], read or written: no two are one
  w.out.strides[1] = 2;
  CHECK(w.forward() == MPIROUTER_OK);
  w.to_experts.strides[0] = 0;
  CHECK(w.backward() == wrong);
  says("grad_experts are written, and with the strides [0, 4, 1]");
  void* twice[2] = {w.grad_gates.data(), w.grad_gates.data()};
  w.to_experts = mpi_router_experts_fd_pointers(twice, MPIROUTER_F32, 2, 3, 4);
  CHECK(w.backward() == wrong);
  says("two of their pointers are one");
}

TEST_CASE("more steps than any tape could keep, and none to take") {
  refuses(wrong, "steps is 4611686018427387904", [](working& x) { x.options.steps = std::int64_t{1} << 62; });
  working w;
  w.experts.shape[0] = w.in.shape[0] = w.out.shape[0] = 0;
  w.options.steps = std::int64_t{1} << 62;
  CHECK(w.forward() == MPIROUTER_OK);
}

#if !defined(MPIROUTER_TEST_SANITIZED)  // sanitizers end a program that asks for so much
TEST_CASE("scratch that cannot be had") {
  // Of 2^44 rows, where nothing lies: scratch for them has no addresses.
  constexpr std::int64_t many = std::int64_t{1} << 44;
  working w;
  w.experts = {w.gates.data(), nullptr, MPIROUTER_F32, 0, {many, 1, 1}, {0, 0, 1}};
  w.in.shape[0] = w.out.shape[0] = many;
  w.in.shape[1] = w.out.shape[1] = 1;
  w.in.strides[0] = 0;
  w.out.strides[0] = 1;
  w.out.data = reinterpret_cast<void*>(std::uintptr_t{1} << 44);
  CHECK(mpi_router_rows(&w.experts, &w.in, nullptr, &w.out, nullptr, nullptr, nullptr) ==
        MPIROUTER_OUT_OF_MEMORY);
  says("could not be allocated");
}
#endif

TEST_CASE("the gate") {
  float logits[6] = {}, weights[4] = {};
  std::int32_t ids[4] = {};
  std::uint8_t statuses[2] = {};
  auto in = mpi_router_row_major(logits, MPIROUTER_F32, 2, 3),
       out = mpi_router_row_major(weights, MPIROUTER_F32, 2, 2);
  auto options = mpi_router_default_gating_options(2);
  const auto gate = [&] {
    return mpi_router_gate(&in, &options, nullptr, nullptr, &out, ids, statuses, nullptr);
  };
  CHECK(gate() == MPIROUTER_OK);
  options.top_k = 4;
  CHECK(gate() == wrong);
  says("top_k is 4 for 3 experts");
  options = mpi_router_default_gating_options(1);
  CHECK(gate() == wrong);
  says("weights is [2, 2], not [2, 1]");
  options = mpi_router_default_gating_options(2);
  options.score_function = 3;
  CHECK(gate() == wrong);
  says("score_function is 3");
  options.score_function = 0;
  in.dtype = MPIROUTER_BF16;
  CHECK(gate() == MPIROUTER_UNSUPPORTED);
  says("logits is bf16, and a gate takes f32 or f64");
  in.dtype = MPIROUTER_F64;
  CHECK(gate() == wrong);
  says("weights is f32, logits is f64");
  in.dtype = MPIROUTER_F32;
  CHECK(mpi_router_gate(&in, nullptr, nullptr, nullptr, &out, ids, statuses, nullptr) == wrong);
  says("options is null");
  CHECK(mpi_router_gate(&in, &options, nullptr, nullptr, &out, nullptr, statuses, nullptr) == wrong);
  says("experts is null");
  const std::uint8_t mask[2] = {0, 6};
  CHECK(mpi_router_gate(&in, &options, nullptr, mask, &out, ids, statuses, nullptr) == wrong);
  says("mask of token 1 is 6, which is no status");
  const std::int32_t strangers[4] = {0, 1, 2, 3};
  CHECK(mpi_router_gate_vjp(&in, &options, nullptr, strangers, nullptr, &out, &in, 0, nullptr) == wrong);
  says("token 1 has expert 3 of 3");
  const std::int32_t twice[4] = {0, 1, 2, 2};
  CHECK(mpi_router_gate_vjp(&in, &options, nullptr, twice, nullptr, &out, &in, 0, nullptr) == wrong);
  says("overlap");  // the gradient lies where the logits do
  float gradient[6] = {};
  auto to = mpi_router_row_major(gradient, MPIROUTER_F32, 2, 3);
  CHECK(mpi_router_gate_vjp(&in, &options, nullptr, twice, nullptr, &out, &to, 0, nullptr) == wrong);
  says("token 1 has expert 2 twice");
  const std::uint8_t ones[2] = {1, 0};  // 1 counts elsewhere, and is a status of rows here
  CHECK(mpi_router_gate(&in, &options, nullptr, ones, &out, ids, statuses, nullptr) == wrong);
  says("mask of token 0 is 1, which is no status of a token: 0 counts, 4 is masked");
  const mpi_router_vector none{logits, MPIROUTER_F32, MPIROUTER_HOST, 0, 1};
  CHECK(mpi_router_gate(&in, &options, &none, nullptr, &out, ids, statuses, nullptr) == wrong);
  says("selection_bias has 0 elements, logits is 3 experts wide");
  out.strides[0] = 1;
  CHECK(gate() == wrong);
  says("weights is written, and with the strides [1, 1]");
}

TEST_CASE("certificates") {
  working w;
  std::vector<double> directions(8, 7.0);
  mpi_router_direction found[2] = {};
  mpi_router_row_certificate rows[2] = {};
  auto out = mpi_router_row_major(directions.data(), MPIROUTER_F64, 2, 4);
  auto options = mpi_router_default_certify_options();
  const auto find = [&] {
    return mpi_router_find_directions(&w.experts, &w.in, &options, found, &out, nullptr);
  };
  CHECK(find() == MPIROUTER_OK);
  options.failure_probability = 1;
  CHECK(find() == wrong);
  says("failure_probability is not between 1e-300 and 1");
  options = mpi_router_default_certify_options();
  out.dtype = MPIROUTER_F32;
  CHECK(find() == wrong);
  says("directions is f32, not f64");
  out.dtype = MPIROUTER_F64;
  out.shape[1] = 3;
  CHECK(find() == wrong);
  says("directions is [2, 3], not [2, 4]");
  out.shape[1] = 4;
  found[1].certainty = 9;
  CHECK(mpi_router_certify_rows(&w.experts, &w.in, found, &out, rows, nullptr) == wrong);
  says("found[1] has the certainty 9");
}

TEST_CASE("directions that were not found") {
  working w;
  std::vector<double> directions(8);
  mpi_router_direction found[2] = {};
  mpi_router_row_certificate rows[2] = {};
  auto out = mpi_router_row_major(directions.data(), MPIROUTER_F64, 2, 4);
  CHECK(mpi_router_find_directions(&w.experts, &w.in, nullptr, found, &out, nullptr) == MPIROUTER_OK);
  const auto certify = [&] { return mpi_router_certify_rows(&w.experts, &w.in, found, &out, rows, nullptr); };
  CHECK(certify() == MPIROUTER_OK);
  const auto kept = directions;
  for (const double factor : {0.0, 3.0, std::numeric_limits<double>::quiet_NaN()}) {
    for (std::size_t d = 4; d < 8; ++d) directions[d] = factor * kept[d];
    CHECK(certify() == wrong);
    says("row 1 of directions is no unit vector");
  }
  directions = kept;
  for (const double bound : {-1.0, 2.0}) {
    found[0].angle_bound = bound;
    CHECK(certify() == wrong);
    says("found[0] has an angle_bound outside");
  }
}

TEST_CASE("each thread has a text of its own") {
  working w;
  w.in.dtype = 0;
  CHECK(w.forward() == wrong);
  const std::string mine = mpi_router_last_error();
  std::string before, after;
  std::thread([&] {
    before = mpi_router_last_error();
    static_cast<void>(mpi_router_tape_size(nullptr, nullptr, nullptr));
    after = mpi_router_last_error();
  }).join();
  CHECK(before.empty());
  CHECK(after.find("mpi_router_tape_size: experts is null") != std::string::npos);
  CHECK(mpi_router_last_error() == mine);
}

TEST_CASE("names of what is none") {
  CHECK(std::string(mpi_router_code_name(17)) == "unknown");
  CHECK(std::string(mpi_router_status_name(17)) == "unknown");
  CHECK(std::string(mpi_router_certainty_name(-1)) == "unknown");
  CHECK(mpi_router_sums_dtype(0) == 0);
  CHECK(mpi_router_sums_dtype(MPIROUTER_F16) == MPIROUTER_F32);
}
