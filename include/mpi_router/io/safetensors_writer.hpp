// Writes one safetensors file.
#pragma once

#include <mpi_router/io/atomic_file.hpp>
#include <mpi_router/io/stored_tensor.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

MPIROUTER_BEGIN

/// A tensor to be written: its bytes stay the caller's, row-major and contiguous.
struct tensor_source {
  std::string name;
  dtype type = dtype::f32;
  std::vector<index_t> shape;
  std::span<const std::byte> bytes;
  std::filesystem::path origin = {};  ///< the mapped file that the bytes lie in; empty for plain memory
};

/// A tensor_source over elements in memory.
template <Storable T>
[[nodiscard]] tensor_source make_tensor_source(std::string name, std::vector<index_t> shape,
                                               std::span<const T> elements) {
  return {std::move(name), dtype_of<T>::value, std::move(shape), std::as_bytes(elements)};
}
/// A tensor_source over a tensor of a file, to copy it as it is.
[[nodiscard]] inline tensor_source make_tensor_source(const stored_tensor& t) {
  return {t.name(), t.type(), {t.shape().begin(), t.shape().end()}, t.bytes(), t.file()};
}

namespace detail {

/// `text` as a JSON string. Throws usage_error if it is not UTF-8.
[[nodiscard]] inline std::string quote(const std::string& text) {
  using handler = nlohmann::json::error_handler_t;
  const nlohmann::json value = text;
  std::string quoted = value.dump(-1, ' ', false, handler::replace);
  core::expect(quoted == value.dump(-1, ' ', false, handler::ignore), "write_safetensors: '",
               io::printable(text), "' is not UTF-8");
  return quoted;
}

inline void check_sources(const std::filesystem::path& path, std::span<const tensor_source> tensors) {
  std::set<std::string_view> names;
  std::set<std::filesystem::path> origins;
  for (const auto& t : tensors) {
    const std::string name = io::printable(t.name);
    const auto size = byte_size(t.type, t.shape);
    core::expect(size.has_value() && *size == t.bytes.size(), "write_safetensors: tensor '", name, "' ",
                 to_string(t.shape), " ", mpi_router::to_string(t.type), " with ", t.bytes.size(), " bytes");
    core::expect(t.name != "__metadata__" && t.name.find('\0') == t.name.npos,
                 "write_safetensors: no tensor may be called '", name, "'");
    core::expect(names.insert(t.name).second, "write_safetensors: two tensors are called '", name, "'");
    if (!t.origin.empty() && origins.insert(t.origin).second) {
      core::expect(!same_file(t.origin, path),
                   "write_safetensors: ", io::printable(io::path_text(path), 4096),
                   " is the file that tensor '", name, "' comes from");
    }
  }
}

}  // namespace detail

/// Writes `tensors` and `metadata` to `path`, straight from the caller's memory. The same tensors give the
/// same bytes in whatever order they come: they are laid out by falling element size, then by name, and the
/// header is padded with spaces to a multiple of 8 bytes, so every tensor is aligned for its type. The file
/// appears under its name when it is whole and on disk (atomic_file), and never before. Throws usage_error,
/// and writes nothing, if two tensors share a name, a name is "__metadata__", holds NUL or is not UTF-8, a
/// shape disagrees with its bytes, the header would be over 100 MB, or `path` is the file that a tensor comes
/// from, by whatever name; file_error if the file cannot be written.
inline void write_safetensors(const std::filesystem::path& path, std::span<const tensor_source> tensors,
                              const std::map<std::string, std::string>& metadata = {}) {
  detail::check_sources(path, tensors);
  std::vector<const tensor_source*> order;
  for (const auto& t : tensors) {
    order.push_back(&t);
  }
  std::sort(order.begin(), order.end(), [](const tensor_source* a, const tensor_source* b) {
    return std::tuple(bits_of(b->type), std::string_view(a->name)) <
           std::tuple(bits_of(a->type), std::string_view(b->name));
  });

  std::string header;
  for (const auto& [key, value] : metadata) {
    header += core::concatenate(header.empty() ? R"({"__metadata__":{)" : ",", detail::quote(key), ":",
                                detail::quote(value));
  }
  header += header.empty() ? "{" : "}";
  std::uint64_t offset = 0;
  for (const auto* t : order) {
    const std::uint64_t end = offset + t->bytes.size();
    header += core::concatenate(header.size() > 1 ? "," : "", detail::quote(t->name), R"(:{"dtype":")",
                                to_string(t->type), R"(","shape":)", to_string(t->shape, t->shape.size()),
                                R"(,"data_offsets":[)", offset, ",", end, "]}");
    offset = end;
  }
  header += "}";
  header.append((8 - header.size() % 8) % 8, ' ');
  core::expect(header.size() <= detail::longest_header, "write_safetensors: the header would have ",
               header.size(), " bytes, more than ", detail::longest_header);

  atomic_file file(path);
  const std::uint64_t length = header.size();
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(header);
  for (const auto* t : order) {
    file.write(t->bytes);
  }
  file.commit();
}

MPIROUTER_END
