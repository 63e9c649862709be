// Reads one GGUF file: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
//
//   "GGUF", u32 version (2 or 3), u64 number of tensors, u64 number of metadata
//   metadata: text key, u32 type, value; text is u64 length and bytes
//   tensors: text name, u32 number of axes, u64 extents (fastest axis first), u32 ggml type, u64 offset
//   padding up to a multiple of general.alignment (32 unless it says otherwise), from where the offsets count
#pragma once

#include <mpi_router/io/file_kind.hpp>
#include <mpi_router/io/gguf_values.hpp>
#include <mpi_router/io/mapped_file.hpp>
#include <mpi_router/io/packed/ggml_types.hpp>
#include <mpi_router/io/stored_tensor.hpp>

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <tuple>

MPIROUTER_BEGIN

/// A tensor of a gguf_file, which it must not outlive. Its bytes lie inside the file and are as many as its
/// shape and type ask for: the reader has checked that.
class gguf_tensor {
 public:
  gguf_tensor(const std::filesystem::path& file, std::string name, packed::ggml_type type,
              std::vector<index_t> shape, std::span<const std::byte> bytes)
      : file_(&file), name_(std::move(name)), type_(type), shape_(std::move(shape)), bytes_(bytes) {}

  [[nodiscard]] const std::filesystem::path& file() const noexcept { return *file_; }
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] packed::ggml_type type() const noexcept { return type_; }
  /// Extents, slowest axis first, as everywhere here: the file's own order reversed. Empty for a single
  /// number.
  [[nodiscard]] std::span<const index_t> shape() const noexcept { return shape_; }
  [[nodiscard]] index_t rank() const noexcept { return static_cast<index_t>(shape_.size()); }
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }

  /// Throws file_error with a message that names the file and this tensor.
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... reason) const {
    io::tensor_failure(*file_, name_, reason...);
  }

 private:
  const std::filesystem::path* file_;
  std::string name_;
  packed::ggml_type type_;
  std::vector<index_t> shape_;
  std::span<const std::byte> bytes_;
};

/// A GGUF file of version 2 or 3, mapped and checked. The constructor reads the header and refuses, with a
/// file_error that names file and tensor: another format or version, big-endian files, a file that is cut
/// short, unknown types of values or tensors, keys or names that appear twice, more than four axes, extents
/// of 0, rows that do not fill whole blocks, sizes that overflow, and bytes that are not aligned, overlap, or
/// lie outside of the file. No count is believed before the bytes for it are there, and no tensor is read
/// before it is touched. Complexity: O(header); immutable afterwards, so any number of threads may read.
/// Movable: tensors keep their place.
class gguf_file {
 public:
  explicit gguf_file(std::filesystem::path path) : map_(std::make_unique<mapped_file>(std::move(path))) {
    check_beginning();
    detail::gguf_cursor cursor(this->path(), bytes());
    (void)cursor.take(8);
    const auto tensor_count = cursor.number<std::uint64_t>();
    const auto value_count = cursor.number<std::uint64_t>();
    for (std::uint64_t i = 0; i < value_count; ++i) {
      cursor.enter("metadata entry", i, value_count);
      const std::string_view key = cursor.text();
      const auto type = cursor.number<std::uint32_t>();
      if (!metadata_.emplace(key, cursor.value(key, type)).second) {
        fail("the key '", io::printable(key), "' appears twice in the metadata");
      }
    }
    read_alignment();
    std::vector<tensor_entry> entries;
    for (std::uint64_t i = 0; i < tensor_count; ++i) {
      cursor.enter("tensor", i, tensor_count);
      entries.push_back(read_entry(cursor));
    }
    const std::uint64_t data = (cursor.position() + alignment_ - 1) / alignment_ * alignment_;
    place(entries, bytes().subspan(static_cast<std::size_t>(std::min<std::uint64_t>(data, bytes().size()))));
  }

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return map_->path(); }
  /// The whole file.
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return map_->bytes(); }
  /// All metadata, by key; text stays in the file, which the map must not outlive.
  [[nodiscard]] const std::map<std::string_view, gguf_value>& metadata() const noexcept { return metadata_; }
  /// All tensors, in the order of their bytes in the file.
  [[nodiscard]] std::span<const gguf_tensor> tensors() const noexcept { return tensors_; }

  /// The value under that key, or null. O(log n).
  [[nodiscard]] const gguf_value* find_value(std::string_view key) const noexcept {
    const auto it = metadata_.find(key);
    return it == metadata_.end() ? nullptr : &it->second;
  }
  /// The number under that key if it is an integer from 0 up, of whatever width.
  [[nodiscard]] std::optional<std::uint64_t> count(std::string_view key) const noexcept {
    const gguf_value* const value = find_value(key);
    if (const auto* u = value != nullptr ? std::get_if<std::uint64_t>(value) : nullptr) {
      return *u;
    }
    const auto* const i = value != nullptr ? std::get_if<std::int64_t>(value) : nullptr;
    return i != nullptr && *i >= 0 ? std::optional(static_cast<std::uint64_t>(*i)) : std::nullopt;
  }
  /// The text under that key; nothing if there is none.
  [[nodiscard]] std::optional<std::string_view> text(std::string_view key) const noexcept {
    const gguf_value* const value = find_value(key);
    const auto* const text = value != nullptr ? std::get_if<std::string_view>(value) : nullptr;
    return text != nullptr ? std::optional(*text) : std::nullopt;
  }

  /// The tensor of that name, or null. O(log n).
  [[nodiscard]] const gguf_tensor* find(std::string_view name) const noexcept {
    const auto it =
        std::lower_bound(by_name_.begin(), by_name_.end(), name,
                         [this](std::size_t i, auto wanted) { return tensors_[i].name() < wanted; });
    return it != by_name_.end() && tensors_[*it].name() == name ? &tensors_[*it] : nullptr;
  }

  static constexpr std::uint32_t most_axes = 4;

 private:
  struct tensor_entry {
    std::string name;
    packed::ggml_type type;
    std::vector<index_t> shape;
    std::uint64_t offset;
    std::uint64_t size;
  };

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... reason) const {
    io::file_failure(path(), reason...);
  }
  template <class... Parts>
  [[noreturn]] void refuse(const std::string& name, const Parts&... reason) const {
    io::tensor_failure(path(), name, reason...);
  }

  /// Magic and version.
  void check_beginning() const {
    const std::string_view start(reinterpret_cast<const char*>(bytes().data()),
                                 std::min<std::size_t>(bytes().size(), 8));
    if (start.starts_with("FUGG")) {
      fail("is a big-endian GGUF file; only little-endian ones are read");
    }
    if (!start.starts_with("GGUF")) {
      const std::string kind = foreign_kind(bytes());
      fail(kind.empty() ? "is no GGUF file: it does not begin with 'GGUF'" : kind);
    }
    if (start.size() < 8) {
      fail("is cut short: a GGUF file of ", bytes().size(), " bytes");
    }
    const auto version = packed::read<std::uint32_t>(bytes().data(), 1);
    if (version != 0 && (version & 0xffffU) == 0) {
      fail("is a big-endian GGUF file; only little-endian ones are read");
    }
    if (version != 2 && version != 3) {
      fail("is a GGUF file of version ", version, "; versions 2 and 3 are read");
    }
  }

  void read_alignment() {
    constexpr std::string_view key = "general.alignment";
    if (find_value(key) == nullptr) {
      return;
    }
    const std::uint64_t stored = count(key).value_or(0);
    if (stored == 0 || (stored & (stored - 1)) != 0 || stored > std::uint64_t{1} << 31) {
      fail("its ", key, " is no power of two");
    }
    alignment_ = stored;
  }

  [[nodiscard]] tensor_entry read_entry(detail::gguf_cursor& cursor) const {
    tensor_entry e{std::string(cursor.text()), packed::ggml_type::f32, {}, 0, 0};
    const auto axes = cursor.number<std::uint32_t>();
    if (axes > most_axes) {
      refuse(e.name, "has ", axes, " axes, more than ", most_axes);
    }
    for (std::uint32_t axis = 0; axis < axes; ++axis) {
      const auto extent = cursor.number<std::uint64_t>();
      if (extent == 0 || extent > static_cast<std::uint64_t>(std::numeric_limits<index_t>::max())) {
        refuse(e.name, "an extent of ", static_cast<std::int64_t>(extent));
      }
      e.shape.insert(e.shape.begin(), static_cast<index_t>(extent));
    }
    const auto type = cursor.number<std::uint32_t>();
    e.type = static_cast<packed::ggml_type>(type);
    if (!packed::is_known(e.type)) {
      refuse(e.name, "is of ggml type ", type, ", which is not known");
    }
    e.offset = cursor.number<std::uint64_t>();
    e.size = size_of(e);
    return e;
  }

  [[nodiscard]] std::uint64_t size_of(const tensor_entry& e) const {
    const packed::ggml_block block = packed::ggml_block_of(e.type);
    const index_t row = e.shape.empty() ? 1 : e.shape.back();
    if (row % block.elements != 0) {
      refuse(e.name, to_string(e.shape), " ", packed::name_of(e.type), ": its rows do not fill blocks of ",
             block.elements);
    }
    std::uint64_t size = static_cast<std::uint64_t>(row / block.elements);
    bool fits = !__builtin_mul_overflow(size, static_cast<std::uint64_t>(block.bytes), &size);
    for (std::size_t axis = 0; axis + 1 < e.shape.size(); ++axis) {
      fits = fits && !__builtin_mul_overflow(size, static_cast<std::uint64_t>(e.shape[axis]), &size);
    }
    if (!fits || size > static_cast<std::uint64_t>(std::numeric_limits<index_t>::max())) {
      refuse(e.name, "its size overflows: ", to_string(e.shape), " ", packed::name_of(e.type));
    }
    return size;
  }

  /// Checks each entry against its neighbours and the data, and makes the tensors.
  void place(std::vector<tensor_entry>& entries, std::span<const std::byte> data) {
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
      return std::tie(a.offset, a.name) < std::tie(b.offset, b.name);
    });
    std::uint64_t end = 0;
    for (auto& e : entries) {
      if (e.offset % alignment_ != 0) {
        refuse(e.name, "its bytes start at ", e.offset, ", no multiple of ", alignment_);
      }
      if (e.offset < end) {
        refuse(e.name, "its bytes start at ", e.offset, ", inside the tensor before it, which ends at ", end);
      }
      if (e.offset > data.size() || e.size > data.size() - e.offset) {
        refuse(e.name, "is cut short: it takes ", e.size, " bytes at ", e.offset, " of the data, which have ",
               data.size());
      }
      end = e.offset + e.size;
      tensors_.emplace_back(path(), std::move(e.name), e.type, std::move(e.shape),
                            data.subspan(e.offset, e.size));
    }
    by_name_.resize(tensors_.size());
    std::iota(by_name_.begin(), by_name_.end(), std::size_t{0});
    std::sort(by_name_.begin(), by_name_.end(),
              [this](std::size_t a, std::size_t b) { return tensors_[a].name() < tensors_[b].name(); });
    const auto twice = std::adjacent_find(
        by_name_.begin(), by_name_.end(),
        [this](std::size_t a, std::size_t b) { return tensors_[a].name() == tensors_[b].name(); });
    if (twice != by_name_.end()) {
      refuse(tensors_[*twice].name(), "appears twice");
    }
  }

  std::unique_ptr<const mapped_file> map_;  // by pointer: tensors refer to its path
  std::map<std::string_view, gguf_value> metadata_;
  std::uint64_t alignment_ = 32;
  std::vector<gguf_tensor> tensors_;
  std::vector<std::size_t> by_name_;
};

MPIROUTER_END
