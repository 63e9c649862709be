// Views of what a layer's tensors hold, of whatever type that is.
#pragma once

#include <mpi_router/io/moe/layer.hpp>

#include <cstring>
#include <deque>

MPIROUTER_BEGIN

namespace detail::moe {

/// The `count` elements of a tensor from `first` on: in place, or copied where the file does not align them.
template <Scalar T>
[[nodiscard]] tensor_data<T> elements_of(const stored_tensor& tensor, index_t first, index_t count) {
  const auto bytes = tensor.bytes().subspan(static_cast<std::size_t>(first) * sizeof(T),
                                            static_cast<std::size_t>(count) * sizeof(T));
  if (tensor.is_aligned<T>()) {
    return tensor_data<T>(std::span(reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)));
  }
  std::vector<T> copy(static_cast<std::size_t>(count));
  std::memcpy(copy.data(), bytes.data(), bytes.size());
  return tensor_data<T>(std::move(copy));
}

/// Throws file_error where no one view has all experts.
inline void check_alike(const moe_layer& layer) {
  const auto& first = layer.gates.front();
  for (const auto& gate : layer.gates) {
    if (gate.ffn_dim != first.ffn_dim || gate.tensor->type() != first.tensor->type()) {
      gate.tensor->fail("is ", to_string(gate.tensor->type()), " with F = ", gate.ffn_dim,
                        ", but the first expert is ", to_string(first.tensor->type()),
                        " with F = ", first.ffn_dim,
                        ": no one batch has both; visit_gate takes them one by one");
    }
  }
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

/// Calls use(a) with the gate matrix A, [F, D], of one expert: a matrix_view<const T> of the stored type,
/// good as long as the call. Elements that the file does not align are copied, all else lies where it is
/// mapped. Returns what use returns.
template <class Use>
decltype(auto) visit_gate(const gate_block& block, const Use& use) {
  const expert_shape one{1, block.ffn_dim, block.hidden_dim};
  const index_t size = block.ffn_dim * block.hidden_dim * (detail::moe::is_fused(block.layout) ? 2 : 1);
  return visit_type(*block.tensor, [&]<class T>(T) -> decltype(auto) {
    const auto data = detail::moe::elements_of<T>(*block.tensor, block.index * size, size);
    return use(detail::moe::experts_stored(block.layout, data.data(), one)[0]);
  });
}

/// Calls use(router) with the router's rows, [router_rows, D], as visit_gate does. The first num_experts of
/// them have an expert.
template <class Use>
decltype(auto) visit_router(const moe_layer& layer, const Use& use) {
  return visit_type(*layer.router, [&]<class T>(T) -> decltype(auto) {
    const auto data = layer.router->load<T>();
    return use(layer.layout_of_router == router_layout::nd
                   ? row_major(data.data(), layer.router_rows, layer.hidden_dim)
                   : column_major(data.data(), layer.router_rows, layer.hidden_dim));
  });
}

/// All gate matrices of a layer, and what their view stands on. Movable; the view stays good.
template <Scalar T>
class loaded_experts {
 public:
  /// See load_experts.
  explicit loaded_experts(const moe_layer& layer) {
    detail::moe::check_alike(layer);
    for (const auto& gate : layer.gates) {
      data_.push_back(gate.tensor->load<T>());
      if (!layer.has_one_tensor_each()) {
        view_ = detail::moe::experts_stored(layer.layout, data_.front().data(), layer.shape());
        return;
      }
      const expert_shape one{1, layer.ffn_dim, layer.hidden_dim};
      view_ = detail::moe::experts_stored(layer.layout, data_.back().data(), one);
      table_.push_back(view_.data());
    }
    const auto strides = view_.strides();
    view_ = {table_.data(), layer.shape(), {.expert = 0, .ffn = strides.ffn, .hidden = strides.hidden}};
  }

  [[nodiscard]] const expert_batch_view<const T>& view() const noexcept { return view_; }

 private:
  std::deque<tensor_data<T>> data_;
  std::vector<const T*> table_;
  expert_batch_view<const T> view_;
};

/// All gate matrices of a layer that is stored as T, in place but for those that the file does not align.
/// Throws file_error where T is not the stored type, or where the experts differ in type or in F.
template <Scalar T>
[[nodiscard]] loaded_experts<T> load_experts(const moe_layer& layer) {
  return loaded_experts<T>(layer);
}

/// Calls use(experts) with all gate matrices of a layer, an expert_batch_view<const T> of the stored type, as
/// visit_gate does. Throws file_error where the experts differ in type or in F.
template <class Use>
decltype(auto) visit_experts(const moe_layer& layer, const Use& use) {
  return visit_type(*layer.gates.front().tensor, [&]<class T>(T) -> decltype(auto) {
    const auto experts = load_experts<T>(layer);
    return use(experts.view());
  });
}

MPIROUTER_END
