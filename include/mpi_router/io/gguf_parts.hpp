// Models in several GGUF files: NAME-00001-of-00003.gguf and so on.
#pragma once

#include <mpi_router/io/gguf_file.hpp>

MPIROUTER_BEGIN

namespace detail {

/// "-00002-of-00003.gguf" taken off the name of a file: part 2 of 3.
struct part_name {
  std::string stem;
  std::uint64_t part;
  std::uint64_t count;
};

/// Nothing for a name that is not of this form.
[[nodiscard]] inline std::optional<part_name> part_name_of(std::string_view name) {
  constexpr std::string_view form = "-ddddd-of-ddddd.gguf";
  if (name.size() <= form.size()) {
    return std::nullopt;
  }
  const std::string_view end = name.substr(name.size() - form.size());
  std::array<std::uint64_t, 2> numbers{};
  for (std::size_t i = 0; i < form.size(); ++i) {
    if (form[i] != 'd' && end[i] != form[i]) {
      return std::nullopt;
    }
    if (form[i] == 'd') {
      if (end[i] < '0' || end[i] > '9') {
        return std::nullopt;
      }
      std::uint64_t& number = numbers[i < form.size() / 2 ? 0 : 1];
      number = 10 * number + static_cast<std::uint64_t>(end[i] - '0');
    }
  }
  return part_name{std::string(name.substr(0, name.size() - form.size())), numbers[0], numbers[1]};
}

[[nodiscard]] inline std::string name_of_part(const part_name& series, std::uint64_t part) {
  const auto five_digits = [](std::uint64_t number) {
    const std::string digits = std::to_string(number);
    return std::string(5 - digits.size(), '0') + digits;
  };
  return series.stem + "-" + five_digits(part) + "-of-" + five_digits(series.count) + ".gguf";
}

}  // namespace detail

/// All files of the series that `path` is one of, first to last; `path` alone where its name is none of a
/// series. Only names are looked at. Throws file_error where a part is missing, which it names, or where the
/// name says something like "part 4 of 3".
[[nodiscard]] inline std::vector<std::filesystem::path> gguf_parts(const std::filesystem::path& path) {
  const auto name = detail::part_name_of(io::path_text(path.filename()));
  if (!name) {
    return {path};
  }
  if (name->part == 0 || name->part > name->count) {
    io::file_failure(path, "is part ", name->part, " of ", name->count, " by its name");
  }
  std::vector<std::filesystem::path> parts;
  for (std::uint64_t part = 1; part <= name->count; ++part) {
    parts.push_back(path.parent_path() / io::path_named(detail::name_of_part(*name, part)));
    std::error_code error;
    if (!std::filesystem::exists(parts.back(), error)) {
      io::file_failure(parts.back(), "is missing: part ", part, " of ", name->count, " of '",
                       io::printable(name->stem), "'");
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
        tensor.fail("is in ", io::printable(io::path_text(first->second->path().filename())), " too");
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
