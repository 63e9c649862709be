// Models in several GGUF files: NAME-00001-of-00003.gguf and so on.
#pragma once

#include <mpi_router/io/gguf_file.hpp>
#include <mpi_router/io/shards.hpp>

MPIROUTER_BEGIN

namespace detail {

/// "NAME-00002-of-00003.gguf": shard 2 of 3. Nothing for a name that is not of this form.
[[nodiscard]] inline std::optional<shard_name> gguf_part_of(std::string_view file) {
  auto name = shard_name_of(file);
  const bool is_part = name && name->before.size() > 1 && name->before.ends_with('-') &&
                       name->after == ".gguf" && name->number_digits == 5 && name->count_text.size() == 5;
  return is_part ? std::move(name) : std::nullopt;
}

}  // namespace detail

/// All files of the series that `path` is one of, first to last; `path` alone where its name is none of a
/// series. Only names are looked at. Throws file_error where a part is missing, which it names, or where the
/// name says something like "part 4 of 3".
[[nodiscard]] inline std::vector<std::filesystem::path> gguf_parts(const std::filesystem::path& path) {
  const auto name = detail::gguf_part_of(path.filename().string());
  if (!name) {
    return {path};
  }
  if (name->number == 0 || name->number > name->count) {
    io::file_failure(path, "is part ", name->number, " of ", name->count, " by its name");
  }
  std::vector<std::filesystem::path> parts;
  for (std::uint64_t part = 1; part <= name->count; ++part) {
    parts.push_back(path.parent_path() / name->sibling(part));
    std::error_code error;
    if (!std::filesystem::exists(parts.back(), error)) {
      const auto stem = std::string_view(name->before).substr(0, name->before.size() - 1);
      io::file_failure(parts.back(), "is missing: part ", part, " of ", name->count, " of '",
                       io::printable(stem), "'");
    }
  }
  return parts;
}

/// Checks that these files, in this order, are one series and all of it: what they say under split.no,
/// split.count and split.tensors.count, and that no tensor is in two of them. A file that says nothing is a
/// series of one. Throws file_error that names the file. O(n log n) for n tensors.
inline void check_series(std::span<const gguf_file> parts) {
  std::uint64_t tensors = 0;
  std::map<std::string_view, const gguf_file*> owner;
  for (const gguf_file& part : parts) {
    for (const gguf_tensor& tensor : part.tensors()) {
      const auto [first, is_new] = owner.emplace(tensor.name(), &part);
      if (!is_new) {
        tensor.fail("is in ", io::printable(first->second->path().filename().string()), " too");
      }
    }
    tensors += part.tensors().size();
  }
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::uint64_t count = parts[i].count("split.count").value_or(1);
    const std::uint64_t number = parts[i].count("split.no").value_or(0);
    if (std::max<std::uint64_t>(count, 1) != parts.size() || number != i) {
      io::file_failure(parts[i].path(), "is part ", number + 1, " of ", count,
                       " by its metadata, but was found as part ", i + 1, " of ", parts.size());
    }
    const std::uint64_t promised = parts[i].count("split.tensors.count").value_or(tensors);
    if (promised != tensors) {
      io::file_failure(parts[i].path(), "is part of a series of ", promised, " tensors, but they hold ",
                       tensors);
    }
  }
}

MPIROUTER_END
