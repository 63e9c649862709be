// The weights of GGUF files: plain ones in place, blocks decoded row by row.
#pragma once

#include <mpi_router/io/gguf_file.hpp>
#include <mpi_router/io/weight.hpp>

#include <deque>

MPIROUTER_BEGIN

namespace detail {

/// The type of safetensors that a plain one of ggml is.
[[nodiscard]] inline std::optional<dtype> plain_type_of(packed::ggml_type type) {
  switch (type) {
    case packed::ggml_type::f32: return dtype::f32;
    case packed::ggml_type::f16: return dtype::f16;
    case packed::ggml_type::bf16: return dtype::bf16;
    case packed::ggml_type::f64: return dtype::f64;
    default: return std::nullopt;
  }
}

/// The tensor of that name in whichever file of a series; null if there is none.
[[nodiscard]] inline const gguf_tensor* find_in(const std::deque<gguf_file>& series, std::string_view name) {
  for (const auto& file : series) {
    if (const auto* found = file.find(name)) {
      return found;
    }
  }
  return nullptr;
}

/// "X.scale" beside "X.weight", which multiplies it whatever its type: the blocks of NVFP4 leave it to that.
/// Null if there is none. A router's with one number for each column is none: it is of what the router sees
/// (Gemma-4).
[[nodiscard]] inline const gguf_tensor* scale_beside(const std::deque<gguf_file>& series,
                                                     const gguf_tensor& t) {
  constexpr std::string_view end = "weight";
  const auto* scale =
      t.name().ends_with(".weight")
          ? find_in(series, core::concatenate(t.name().substr(0, t.name().size() - end.size()), "scale"))
          : nullptr;
  const bool of_columns = scale != nullptr && t.name().ends_with("ffn_gate_inp.weight") && t.rank() == 2 &&
                          t.shape().back() > 1 && element_count(scale->shape()) == t.shape().back();
  return of_columns ? nullptr : scale;
}

/// One number for the tensor or for each of its matrices: those of `scale`, or 1. Nothing where they are not
/// so many, or no F32.
[[nodiscard]] inline std::optional<std::vector<float>> second_scales(const gguf_tensor* scale,
                                                                     index_t count) {
  std::vector<float> out(static_cast<std::size_t>(count), 1.0F);
  if (scale == nullptr) {
    return out;
  }
  const auto scales = scale->bytes().size() / sizeof(float);
  if (scale->type() != packed::ggml_type::f32 || (scales != 1 && scales != out.size())) {
    return std::nullopt;
  }
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::memcpy(&out[i], scale->bytes().data() + (scales == 1 ? 0 : i) * sizeof(float), sizeof(float));
  }
  return out;
}

[[nodiscard]] inline weight packed_weight(const gguf_tensor& t, const gguf_tensor* scale) {
  const std::vector<index_t> shape(t.shape().begin(), t.shape().end());
  const auto refuse = [&](const std::string& reason) {
    weight out(t.file(), t.name(), shape, packed::name_of(t.type()));
    out.set_problem(core::concatenate("'", t.name(), "' is ", reason));
    return out;
  };
  if (const auto reason = packed::refusal_of(t.type()); !reason.empty()) {
    return refuse(reason);
  }
  if (shape.size() < 2) {
    return refuse(core::concatenate(packed::name_of(t.type()), " with a single axis"));
  }
  const index_t cols = shape.back();
  const index_t rows = shape[shape.size() - 2];
  const index_t count = element_count(std::span(shape).first(shape.size() - 2));
  const auto scales = second_scales(scale, count);
  if (!scales) {
    return refuse(
        core::concatenate(packed::name_of(t.type()), ", and its .scale fits neither it nor its experts"));
  }
  std::vector<packed::any_matrix> matrices;
  matrices.reserve(scales->size());
  const std::size_t each = t.bytes().size() / static_cast<std::size_t>(count);
  for (std::size_t i = 0; i < scales->size(); ++i) {
    matrices.emplace_back(
        packed::ggml_matrix(t.type(), t.bytes().subspan(i * each, each), rows, cols, (*scales)[i]));
  }
  return {t.file(), t.name(), shape, std::move(matrices)};
}

/// Adds the weights of one file of a series; `plain` keeps the tensors that are no blocks.
inline void add_weights(const gguf_file& file, const std::deque<gguf_file>& series,
                        std::deque<stored_tensor>& plain, std::vector<weight>& weights) {
  for (const auto& t : file.tensors()) {
    const auto* scale = scale_beside(series, t);
    const auto type = plain_type_of(t.type());
    if (type && (scale == nullptr || t.rank() < 2)) {
      weights.emplace_back(plain.emplace_back(file.path(), t.name(), *type,
                                              std::vector(t.shape().begin(), t.shape().end()), t.bytes()));
    } else {
      weights.push_back(packed_weight(t, scale));
    }
    weights.back().set_of_ggml();
  }
}

}  // namespace detail

MPIROUTER_END
