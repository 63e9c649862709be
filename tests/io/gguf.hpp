// GGUF files put together byte by byte.
#pragma once

#include "files.hpp"

#include <mpi_router/io/gguf_parts.hpp>

#include <string>
#include <vector>

namespace io_test {

template <class T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
inline std::string raw_text(const std::string& text) { return raw(std::uint64_t{text.size()}) + text; }

/// A metadata entry: key, number of the type, the value's bytes.
inline std::string entry(const std::string& key, std::uint32_t type, const std::string& value) {
  return raw_text(key) + raw(type) + value;
}
/// A tensor's entry; extents in the file's order, fastest first.
inline std::string tensor_entry(const std::string& name, const std::vector<std::uint64_t>& extents,
                                std::uint32_t type, std::uint64_t offset) {
  std::string out = raw_text(name) + raw(static_cast<std::uint32_t>(extents.size()));
  for (const std::uint64_t extent : extents) out += raw(extent);
  return out + raw(type) + raw(offset);
}

/// A file of these entries, and data after the padding.
struct gguf_bytes {
  std::vector<std::string> metadata;
  std::vector<std::string> tensors;
  std::string data;
  std::size_t alignment = 32;
  std::uint32_t version = 3;
  std::string magic = "GGUF";

  [[nodiscard]] std::string header() const {
    std::string out =
        magic + raw(version) + raw(std::uint64_t{tensors.size()}) + raw(std::uint64_t{metadata.size()});
    for (const auto& e : metadata) out += e;
    for (const auto& e : tensors) out += e;
    return out;
  }
  [[nodiscard]] std::string bytes() const {
    std::string out = header();
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    return out + data;
  }
};

}  // namespace io_test
