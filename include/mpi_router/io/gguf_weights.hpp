// The weights of a GGUF file: plain ones in place, blocks decoded row by row.
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

/// The number that the blocks of NVFP4 leave out, one for the tensor or for each of `count` matrices.
[[nodiscard]] inline std::optional<std::vector<float>> second_scales(const gguf_file& file,
                                                                     const std::string& name, index_t count) {
  std::vector<float> out(static_cast<std::size_t>(count), 1.0F);
  const auto* t = name.ends_with(".weight")
                      ? file.find(name.substr(0, name.size() - std::string_view("weight").size()) + "scale")
                      : nullptr;
  if (t == nullptr) {
    return out;
  }
  const auto scales = t->bytes().size() / sizeof(float);
  if (t->type() != packed::ggml_type::f32 || (scales != 1 && scales != out.size())) {
    return std::nullopt;
  }
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::memcpy(&out[i], t->bytes().data() + (scales == 1 ? 0 : i) * sizeof(float), sizeof(float));
  }
  return out;
}

[[nodiscard]] inline weight packed_weight(const gguf_file& file, const gguf_tensor& t) {
  const std::vector<index_t> shape(t.shape().begin(), t.shape().end());
  const auto refuse = [&](const std::string& reason) {
    weight out(file.path(), t.name(), shape, packed::name_of(t.type()));
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
  index_t count = 1;
  for (std::size_t i = 0; i + 2 < shape.size(); ++i) {
    count *= shape[i];
  }
  const auto scales = second_scales(file, t.name(), count);
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
  return {file.path(), t.name(), shape, std::move(matrices)};
}

/// Adds the weights of one file; `plain` keeps the tensors that are no blocks.
inline void add_weights(const gguf_file& file, std::deque<stored_tensor>& plain,
                        std::vector<weight>& weights) {
  for (const auto& t : file.tensors()) {
    if (const auto type = plain_type_of(t.type())) {
      weights.emplace_back(plain.emplace_back(file.path(), t.name(), *type,
                                              std::vector(t.shape().begin(), t.shape().end()), t.bytes()));
    } else {
      weights.push_back(packed_weight(file, t));
    }
    weights.back().set_of_ggml();
  }
}

}  // namespace detail

MPIROUTER_END
