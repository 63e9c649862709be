// Writes one safetensors file.
#pragma once

#include <mpi_router/io/atomic_file.hpp>
#include <mpi_router/io/stored_tensor.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <map>
#include <tuple>

MPIROUTER_BEGIN_TYPES

/// A tensor to be written: its bytes stay the caller's, row-major and contiguous.
struct tensor_source {
  std::string name;
  dtype type = dtype::f32;
  std::vector<index_t> shape;
  std::span<const std::byte> bytes;
};

/// A tensor_source over elements in memory.
template <Storable T>
[[nodiscard]] tensor_source make_tensor_source(std::string name, std::vector<index_t> shape,
                                               std::span<const T> elements) {
  return {std::move(name), dtype_of<T>::value, std::move(shape), std::as_bytes(elements)};
}

/// Writes `tensors` and `metadata` to `path`, straight from the caller's memory. The same tensors give the same
/// bytes in whatever order they come: they are laid out by falling element size, then by name, and the header
/// is padded with spaces to a multiple of 8 bytes, so every tensor is aligned for its type.
/// The file appears under its name when it is whole and on disk (atomic_file), and never before.
/// Throws usage_error if two tensors share a name, a name is "__metadata__" or no UTF-8, a shape disagrees
/// with its bytes, or a tensor's bytes lie inside the file to be replaced by way of safetensors_file (compare
/// paths before: refuse_same_file); file_error if the file cannot be written.
inline void write_safetensors(const std::filesystem::path& path, std::span<const tensor_source> tensors,
                              const std::map<std::string, std::string>& metadata = {}) {
  using json = nlohmann::ordered_json;
  std::vector<const tensor_source*> order;
  for (const auto& t : tensors) {
    const auto size = detail::byte_size(t.type, t.shape);
    detail::expect(size.has_value() && *size == t.bytes.size(), "write_safetensors: tensor '",
                   detail::printable(t.name), "' ", detail::to_string(t.shape), " ", to_string(t.type), " with ",
                   t.bytes.size(), " bytes");
    order.push_back(&t);
  }
  std::sort(order.begin(), order.end(), [](const tensor_source* a, const tensor_source* b) {
    return std::tuple(bits_of(b->type), std::string_view(a->name)) <
           std::tuple(bits_of(a->type), std::string_view(b->name));
  });

  std::string header = "{";
  const auto append = [&header](const std::string& key, const json& value) {
    header += header.size() > 1 ? "," : "";
    header += json(key).dump() + ":" + value.dump();
  };
  if (!metadata.empty()) {
    append("__metadata__", metadata);
  }
  std::uint64_t offset = 0;
  for (const auto* t : order) {
    append(t->name, {{"dtype", to_string(t->type)},
                     {"shape", t->shape},
                     {"data_offsets", {offset, offset + t->bytes.size()}}});
    offset += t->bytes.size();
  }
  header += "}";
  header.append((8 - header.size() % 8) % 8, ' ');

  atomic_file file(path);
  const std::uint64_t length = header.size();
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(header);
  for (const auto* t : order) {
    file.write(t->bytes);
  }
  file.commit();
}

MPIROUTER_END_TYPES
