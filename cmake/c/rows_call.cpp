#include "rows_call.hpp"

#include <cstdint>

namespace mpi_router_c {

router_options options_of(const char* what, const mpi_router_options* options) {
  const mpi_router_options o = options == nullptr ? mpi_router_default_options() : *options;
  core::expect(o.reserved == 0, what, ": reserved of the options is ", o.reserved, ", not 0");
  core::expect(o.radius_rule == MPIROUTER_RADIUS_SCALE_FREE || o.radius_rule == MPIROUTER_RADIUS_FIXED, what,
               ": radius_rule is ", o.radius_rule, ", which is none of its values");
  return {.radius = o.radius_rule == MPIROUTER_RADIUS_FIXED
                        ? router_radius::fixed(o.radius)
                        : router_radius::scale_free(o.radius, o.total_experts),
          .steps = o.steps,
          .degenerate = enumerated(what, "degenerate", o.degenerate, degenerate_row::zero),
          .through = enumerated(what, "through", o.through, differentiate::none)};
}

gradient_mode mode_of(const char* what, std::int32_t mode) {
  return enumerated(what, "mode", mode, gradient_mode::accumulate);
}

void check_rows(const char* what, const char* name, const mpi_router_matrix& matrix,
                const mpi_router_experts& experts, place where) {
  check(what, name, matrix, where);
  expect_meets(what, name, matrix.dtype, mpi_router_sums_dtype(experts.dtype));
  const auto [n, f, d] = shape_of(experts);
  core::expect(matrix.shape[0] == n && matrix.shape[1] == d, what, ": ", name, " is [", matrix.shape[0], ", ",
               matrix.shape[1], "], not [", n, ", ", d, "], as the experts [N = ", n, ", F = ", f,
               ", D = ", d, "] ask");
}

void check_gradient(const char* what, const mpi_router_experts& experts,
                    const mpi_router_experts& grad_experts, place where) {
  check(what, "grad_experts", grad_experts, where);
  core::expect(shape_of(grad_experts) == shape_of(experts), what, ": grad_experts is [",
               grad_experts.shape[0], ", ", grad_experts.shape[1], ", ", grad_experts.shape[2],
               "], experts is [", experts.shape[0], ", ", experts.shape[1], ", ", experts.shape[2], "]");
  if (grad_experts.dtype != experts.dtype && grad_experts.dtype != mpi_router_sums_dtype(experts.dtype)) {
    unsupported(what, ": grad_experts is ", name_of(grad_experts.dtype), " and experts is ",
                name_of(experts.dtype), ": their gradient is of the same type, or f32 of f32, bf16 and f16");
  }
}

std::int64_t bytes_of(const char* what, const char* name, double elements, mpi_router_dtype experts,
                      index_t steps) {
  const double bytes = elements * (experts == MPIROUTER_F64 ? 8 : 4);
  core::expect(bytes <= 0x1p+52, what, ": steps is ", steps, ", and ", name,
               " of so many does not fit in memory");
  return static_cast<std::int64_t>(bytes);
}

void check_buffer(const char* what, const char* name, const mpi_router_buffer& buffer, std::int64_t bytes) {
  core::expect(buffer.bytes >= bytes, what, ": ", name, " has ", buffer.bytes, " bytes, not ", bytes);
  core::expect(buffer.data != nullptr || bytes == 0, what, ": ", name, " has null data");
  core::expect(reinterpret_cast<std::uintptr_t>(buffer.data) % alignof(double) == 0, what, ": ", name,
               " is not aligned as a double");
}

namespace {

/// Whether experts are on a GPU, where tapes and factors are of one step.
bool is_of_one_step(const char* what, const mpi_router_experts& experts, const router_options& options) {
  core::expect(options.steps >= 1, what, ": steps is ", options.steps);
  if (experts.device == MPIROUTER_CUDA && options.steps != 1) {
    unsupported(what, ": steps is ", options.steps,
                ", and a backward on a GPU, with its tape, is of one step: take it of one step at a time");
  }
  return experts.device == MPIROUTER_CUDA;
}

/// Experts of either side, in every build, with data or without: sizes are those of shapes.
void check_sized(const char* what, const mpi_router_experts* experts) {
  const bool is_gpu = given(what, "experts", experts).device == MPIROUTER_CUDA;
  check(what, "experts", *experts, {is_gpu ? MPIROUTER_CUDA : MPIROUTER_HOST, false});
}

}  // namespace

std::int64_t tape_bytes(const char* what, const mpi_router_experts& experts, const router_options& options) {
  if (is_of_one_step(what, experts, options)) {
    return experts.shape[0] * (4 * experts.shape[2] + 9);  // of a saved_step
  }
  const double elements = static_cast<double>(experts.shape[0]) * static_cast<double>(options.steps) *
                          static_cast<double>(experts.shape[2] + 2);
  return bytes_of(what, "the tape", elements, experts.dtype, options.steps);
}

std::int64_t factor_bytes(const char* what, const mpi_router_experts& experts,
                          const router_options& options) {
  const bool of_one_step = is_of_one_step(what, experts, options);
  core::expect(options.through != differentiate::none, what,
               ": through is none, so there are no factors; mpi_router_rows_vjp_detached takes none");
  if (of_one_step) {
    return experts.shape[0] * 4 * (2 * experts.shape[1] + experts.shape[2]);  // of gradient_factors
  }
  const double elements = static_cast<double>(router_factors<float>::terms(options)) *
                          static_cast<double>(experts.shape[0]) * 2 *
                          static_cast<double>(experts.shape[1] + experts.shape[2]);
  return bytes_of(what, "the factors", elements, experts.dtype, options.steps);
}

}  // namespace mpi_router_c

using namespace mpi_router_c;

extern "C" {

mpi_router_options mpi_router_default_options() {
  return {.radius = 4,
          .radius_rule = MPIROUTER_RADIUS_SCALE_FREE,
          .degenerate = MPIROUTER_DEGENERATE_KEEP,
          .total_experts = 0,
          .steps = 1,
          .through = MPIROUTER_THROUGH_ALL,
          .reserved = 0};
}

mpi_router_dtype mpi_router_sums_dtype(mpi_router_dtype experts) {
  if (experts == MPIROUTER_F64) {
    return MPIROUTER_F64;
  }
  return experts >= MPIROUTER_F32 && experts <= MPIROUTER_F16 ? MPIROUTER_F32 : 0;
}

mpi_router_code mpi_router_tape_size(const mpi_router_experts* experts, const mpi_router_options* options,
                                     std::int64_t* bytes) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_tape_size";
    check_sized(what, experts);
    static_cast<void>(given(what, "bytes", bytes));
    *bytes = tape_bytes(what, *experts, options_of(what, options));
  });
}

mpi_router_code mpi_router_factors_size(const mpi_router_experts* experts, const mpi_router_options* options,
                                        std::int64_t* bytes) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_factors_size";
    check_sized(what, experts);
    static_cast<void>(given(what, "bytes", bytes));
    *bytes = factor_bytes(what, *experts, options_of(what, options));
  });
}

}  // extern "C"
