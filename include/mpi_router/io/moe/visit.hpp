// Views of what a layer's tensors hold, of whatever type that is.
#pragma once

#include <mpi_router/io/moe/layer.hpp>

#include <cstring>
#include <deque>

MPIROUTER_BEGIN

namespace detail::moe {

/// The `count` elements of a weight that is not packed from `first` on: in place, or copied where the file
/// does not align them, or where they lie apart.
template <Scalar T>
[[nodiscard]] tensor_data<T> elements_of(const weight& w, index_t first, index_t count) {
  const auto& tensor = *w.plain();
  const auto part = w.part().value_or(strided_part{0, first + count, 0});
  const auto bytes_from = [&](index_t element, index_t elements) {
    return tensor.bytes().subspan(static_cast<std::size_t>(part.place_of(element)) * sizeof(T),
                                  static_cast<std::size_t>(elements) * sizeof(T));
  };
  const bool together = count == 0 || first / part.each == (first + count - 1) / part.each;
  if (together && tensor.is_aligned<T>()) {
    const auto bytes = count == 0 ? std::span<const std::byte>() : bytes_from(first, count);
    return tensor_data<T>(std::span(reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)));
  }
  std::vector<T> copy(static_cast<std::size_t>(count));
  for (index_t done = 0; done < count;) {
    const index_t here = std::min(count - done, part.each - (first + done) % part.each);
    const auto bytes = bytes_from(first + done, here);
    std::memcpy(copy.data() + done, bytes.data(), bytes.size());
    done += here;
  }
  return tensor_data<T>(std::move(copy));
}

/// All of them.
template <Scalar T>
[[nodiscard]] tensor_data<T> elements_of(const weight& w) {
  return elements_of<T>(w, 0, element_count(w.shape()));
}

/// Throws file_error where no one view has all experts.
inline void check_alike(const moe_layer& layer) {
  const auto& first = layer.gates.front();
  for (const auto& gate : layer.gates) {
    const auto kind = [](const gate_block& g) {
      return g.tensor->plain() == nullptr ? std::optional<dtype>() : g.tensor->plain()->type();
    };
    if (gate.ffn_dim != first.ffn_dim || kind(gate) != kind(first)) {
      gate.tensor->fail("is ", gate.tensor->stored_as(), " with F = ", gate.ffn_dim,
                        ", but the first expert is ", first.tensor->stored_as(), " with F = ", first.ffn_dim,
                        ": no one batch has both; visit_gate takes them one by one");
    }
  }
}

/// Elements of the tensor of one expert.
[[nodiscard]] inline index_t size_of_gate(const gate_block& block) {
  return block.ffn_dim * block.hidden_dim * (is_fused(block.layout) ? 2 : 1);
}

/// The matrix of a block, [F, D], whose tensor's elements for the expert begin at `data`.
template <class T>
[[nodiscard]] matrix_view<const T> matrix_stored(const gate_block& block, const T* data) {
  return experts_stored(block.layout, data, {1, block.ffn_dim, block.hidden_dim}, block.half)[0];
}

/// A packed gate, decoded.
template <Accumulator S>
[[nodiscard]] std::vector<S> decoded_gate(const gate_block& block) {
  const index_t size = size_of_gate(block);
  const index_t rows = size / block.tensor->cols();
  std::vector<S> out(static_cast<std::size_t>(size));
  block.tensor->decode(block.index * rows, rows, out.data());
  return out;
}

}  // namespace detail::moe

/// Calls use(T{}) with the stored type of a tensor: double, float, bf16 or f16. Returns what that returns.
/// Throws file_error for every other type.
template <class Use>
decltype(auto) visit_type(const stored_tensor& tensor, const Use& use) {
  switch (tensor.type()) {
    case dtype::f64: return use(double{});
    case dtype::f32: return use(float{});
    case dtype::bf16: return use(bf16{});
    case dtype::f16: return use(f16{});
    default: tensor.fail("is stored as ", to_string(tensor.type()), ", not as floating point");
  }
}

/// Calls use(a) with the gate matrix A, [F, D], of one expert: a matrix_view<const T> of the stored type, or
/// of Decoded for a packed one, good as long as the call. What is packed is decoded, and elements that the
/// file does not align are copied; all else lies where it is mapped. Returns what use returns.
///
///   visit_gate(block, use);          // packed weights as float, rounded
///   visit_gate<double>(block, use);  // as double: the products of codes and scales as they are
template <Accumulator Decoded = float, class Use>
decltype(auto) visit_gate(const gate_block& block, const Use& use) {
  if (block.tensor->is_packed()) {
    const auto data = detail::moe::decoded_gate<Decoded>(block);
    return use(detail::moe::matrix_stored(block, data.data()));
  }
  const index_t size = detail::moe::size_of_gate(block);
  return visit_type(*block.tensor->plain(), [&]<class T>(T) -> decltype(auto) {
    const auto data = detail::moe::elements_of<T>(*block.tensor, block.index * size, size);
    return use(detail::moe::matrix_stored(block, data.data()));
  });
}

namespace detail::moe {

/// rows × cols of `data`, or its transpose.
template <class T>
[[nodiscard]] matrix_view<const T> rows_stored(router_layout layout, const T* data, index_t rows,
                                               index_t cols) {
  return layout == router_layout::nd ? row_major(data, rows, cols) : column_major(data, rows, cols);
}

}  // namespace detail::moe

/// Calls use(router) with the router's rows, [router_rows, D], as visit_gate does. The first num_experts of
/// them have an expert.
template <Accumulator Decoded = float, class Use>
decltype(auto) visit_router(const moe_layer& layer, const Use& use) {
  const auto rows = [&](const auto* data) {
    return detail::moe::rows_stored(layer.layout_of_router, data, layer.router_rows, layer.hidden_dim);
  };
  if (layer.router->is_packed()) {
    std::vector<Decoded> data(static_cast<std::size_t>(layer.router_rows * layer.hidden_dim));
    layer.router->decode(0, layer.router->rows(), data.data());
    return use(rows(std::as_const(data).data()));
  }
  return visit_type(*layer.router->plain(), [&]<class T>(T) -> decltype(auto) {
    const auto data = detail::moe::elements_of<T>(*layer.router);
    return use(rows(data.data()));
  });
}

/// Calls use(row) with row `expert` of the router, a vector_view of D elements, as visit_gate does: a packed
/// one is decoded alone, where the router's layout lets it.
template <Accumulator Decoded = float, class Use>
decltype(auto) visit_router_row(const moe_layer& layer, index_t expert, const Use& use) {
  const bool alone = layer.router->is_packed() && layer.layout_of_router == router_layout::nd;
  if (!alone) {
    return visit_router<Decoded>(
        layer, [&](const auto& router) -> decltype(auto) { return use(router.row(expert)); });
  }
  std::vector<Decoded> data(static_cast<std::size_t>(layer.hidden_dim));
  layer.router->decode(expert, 1, data.data());
  return use(vector_view<const Decoded>(std::as_const(data).data(), layer.hidden_dim));
}

/// Calls use(p) with the projection P, [L, D], of a layer whose experts see a latent, as visit_gate does.
template <Accumulator Decoded = float, class Use>
decltype(auto) visit_latent(const moe_layer& layer, const Use& use) {
  core::expect(layer.latent != nullptr, "visit_latent: '", layer.name, "' has no latent");
  const auto& p = *layer.latent;
  return visit_gate<Decoded>(gate_block{&p, 0, gate_layout::nfd, p.rows(), p.cols()}, use);
}

/// All gate matrices of a layer, and what their view stands on. Movable; the view stays good.
template <Scalar T>
class loaded_experts {
 public:
  /// See load_experts.
  explicit loaded_experts(const moe_layer& layer) {
    detail::moe::check_alike(layer);
    const auto& first = *layer.gates.front().tensor;
    if (!layer.has_one_tensor_each() && !first.is_packed() && !first.part()) {
      check_type(first);
      data_.push_back(detail::moe::elements_of<T>(first));
      view_ = detail::moe::experts_stored(layer.layout, data_.front().data(), layer.shape());
      return;
    }
    for (const auto& gate : layer.gates) {
      data_.push_back(data_of(gate));
      const expert_shape one{1, gate.ffn_dim, gate.hidden_dim};
      view_ = detail::moe::experts_stored(gate.layout, data_.back().data(), one);
      table_.push_back(view_.data());
    }
    const auto strides = view_.strides();
    view_ = {table_.data(), layer.shape(), {.expert = 0, .ffn = strides.ffn, .hidden = strides.hidden}};
  }

  [[nodiscard]] const expert_batch_view<const T>& view() const noexcept { return view_; }

 private:
  static tensor_data<T> data_of(const gate_block& gate) {
    if (!gate.tensor->is_packed()) {
      const index_t size = detail::moe::size_of_gate(gate);
      check_type(*gate.tensor);
      return detail::moe::elements_of<T>(*gate.tensor, gate.index * size, size);
    }
    if constexpr (Accumulator<T>) {
      return tensor_data<T>(detail::moe::decoded_gate<T>(gate));
    } else {
      gate.tensor->fail("is packed, as ", gate.tensor->stored_as(), ", and asked for as ",
                        to_string(dtype_of<T>::value), "; it decodes to F32 or F64");
    }
  }

  static void check_type(const weight& w) {
    if (w.plain()->type() != dtype_of<T>::value) {
      w.fail("is stored as ", w.stored_as(), " and asked for as ", to_string(dtype_of<T>::value));
    }
  }

  std::deque<tensor_data<T>> data_;
  std::vector<const T*> table_;
  expert_batch_view<const T> view_;
};

/// All gate matrices of a layer that is stored as T, in place except those that the file does not align; or,
/// decoded, of a packed layer as float or double. Throws file_error where T is not the stored type, or where
/// the experts differ in type or in F.
template <Scalar T>
[[nodiscard]] loaded_experts<T> load_experts(const moe_layer& layer) {
  return loaded_experts<T>(layer);
}

/// Calls use(experts) with all gate matrices of a layer, an expert_batch_view<const T> of the stored type, as
/// visit_gate does: a packed layer is decoded whole. Throws file_error where the experts differ in type or in
/// F.
template <class Use>
decltype(auto) visit_experts(const moe_layer& layer, const Use& use) {
  const auto& first = *layer.gates.front().tensor;
  if (first.is_packed()) {
    const auto experts = load_experts<float>(layer);
    return use(experts.view());
  }
  return visit_type(*first.plain(), [&]<class T>(T) -> decltype(auto) {
    const auto experts = load_experts<T>(layer);
    return use(experts.view());
  });
}

MPIROUTER_END
