// What a file is that is not safetensors, by how it begins: a refusal that says so saves a search.
#pragma once

#include <mpi_router/io/file_error.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

MPIROUTER_BEGIN

namespace detail {

/// How a kind of file begins, and what a refusal says of it: "FILE: is a GGUF file; …".
struct file_signature {
  std::string_view start;
  std::string_view words;
};

inline constexpr std::string_view whitespace = " \t\r\n";
inline constexpr std::size_t telling_bytes = 4096;  ///< no kind needs more of the file than this

/// Formats that weights come in, and what stands in their place before they are fetched or unpacked.
// clang-format off
inline constexpr std::array<file_signature, 24> file_signatures{{
    {"version https://git-lfs", "is a Git LFS pointer, not the file: git lfs pull"},
    {"version https://hawser", "is a Git LFS pointer, not the file: git lfs pull"},
    {"# xet version", "is a Git Xet pointer, not the file: git xet checkout"},
    {"/annex/objects/", "is a git-annex pointer, not the file: git annex get"},
    {"GGUF", "is a GGUF file, not safetensors"},
    {"FUGG", "is a big-endian GGUF file; only little-endian ones are read"},
    {"lmgg", "is a GGML file; only safetensors and GGUF are read"},
    {"tjgg", "is a GGML file; only safetensors and GGUF are read"},
    {"fmgg", "is a GGML file; only safetensors and GGUF are read"},
    {"\x80\x02", "is a Python pickle, as PyTorch's old .pt, .pth and .bin files are; only safetensors and GGUF are read"},
    {"\x80\x03", "is a Python pickle; only safetensors and GGUF are read"},
    {"\x80\x04", "is a Python pickle; only safetensors and GGUF are read"},
    {"\x80\x05", "is a Python pickle; only safetensors and GGUF are read"},
    {"\x89HDF\r\n", "is an HDF5 file, as Keras' .h5 files are; only safetensors and GGUF are read"},
    {"\x93NUMPY", "is a NumPy array; only safetensors and GGUF are read"},
    {"ARROW1", "is an Arrow file; only safetensors and GGUF are read"},
    {"PAR1", "is a Parquet file; only safetensors and GGUF are read"},
    {"\x1f\x8b", "is compressed by gzip; unpack it first"},
    {"\x28\xb5\x2f\xfd", "is compressed by zstd; unpack it first"},
    {"\xfd" "7zXZ", "is compressed by xz; unpack it first"},
    {"BZh", "is compressed by bzip2; unpack it first"},
    {"\x04\x22\x4d\x18", "is compressed by lz4; unpack it first"},
    {"7z\xbc\xaf", "is a 7z archive; unpack it first"},
    {"Rar!", "is a RAR archive; unpack it first"},
}};
// clang-format on

/// A zip archive by what is in it: PyTorch puts its pickle first, NumPy its arrays.
[[nodiscard]] inline std::string_view zip_kind(std::string_view start) {
  if (start.find(".pkl") != start.npos) {
    return "is a PyTorch file, a zip archive with a pickle in it; only safetensors and GGUF are read";
  }
  return start.find(".npy") != start.npos ? "is a NumPy archive; only safetensors and GGUF are read"
                                          : "is a zip archive; unpack it first";
}

/// The binary formats and pointers; empty for whatever else.
[[nodiscard]] inline std::string_view weights_kind(std::string_view start) {
  if (start.starts_with("PK\x03\x04")) {
    return zip_kind(start);
  }
  for (const auto& signature : file_signatures) {
    if (start.starts_with(signature.start)) {
      return signature.words;
    }
  }
  constexpr std::size_t tar_magic = 257;
  return start.size() > tar_magic && start.substr(tar_magic).starts_with("ustar")
             ? "is a tar archive; unpack it first"
             : "";
}

/// What was saved in the place of a file: an error page, a line of text. Empty for whatever else.
[[nodiscard]] inline std::string text_kind(std::string_view start) {
  constexpr auto is_text = [](char c) {
    return static_cast<unsigned char>(c) >= 0x20U || c == '\t' || c == '\n' || c == '\r';
  };
  if (start.empty() || !std::all_of(start.begin(), start.end(), is_text)) {
    return "";
  }
  std::string lower(start);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  if (lower.find("<html") != lower.npos || lower.find("<!doctype html") != lower.npos) {
    return "is an HTML page, not the file: an error or login page was saved in its place";
  }
  std::string_view line = start.substr(std::min(start.size(), start.find_first_not_of(whitespace)));
  line = line.substr(0, line.find_first_of("\r\n"));
  return core::concatenate("is text, not a checkpoint; it begins '", io::printable(line, 80), "'");
}

}  // namespace detail

/// What a file that begins so is, "is a GGUF file; only safetensors and GGUF are read", to follow its name in
/// a refusal; empty where the beginning says nothing. Not to be asked of a file that can be read: eight bytes
/// of a length may look like anything.
[[nodiscard]] inline std::string foreign_kind(std::span<const std::byte> bytes) {
  if (bytes.empty()) {
    return "is empty";
  }
  const std::string_view start(reinterpret_cast<const char*>(bytes.data()),
                               std::min(bytes.size(), detail::telling_bytes));
  if (start.find_first_not_of('\0') == start.npos) {
    return "begins with zeros, as a download that was not finished does";
  }
  const auto known = detail::weights_kind(start);
  return known.empty() ? detail::text_kind(start) : std::string(known);
}

MPIROUTER_END
