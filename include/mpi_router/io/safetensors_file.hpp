// Reads one safetensors file: https://github.com/huggingface/safetensors#format
//
//   8 bytes, little-endian: n, the length of the header
//   n bytes: a JSON object, {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …} and maybe
//            "__metadata__": {"key": "text", …}
//   the rest: the tensors' bytes, row-major, without gap or overlap; offsets count from here
#pragma once

#include <mpi_router/io/mapped_file.hpp>
#include <mpi_router/io/stored_tensor.hpp>
#include <mpi_router/io/strict_json.hpp>

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <tuple>

MPIROUTER_BEGIN

namespace detail {

/// What the header says of one tensor, as far as it has been read.
struct tensor_entry {
  std::string name;
  std::optional<dtype> type;
  bool has_shape = false;
  std::vector<index_t> shape;
  std::vector<std::uint64_t> offsets;
};

/// Collects the header's tensors and metadata from the events of strict_json.
class header_visitor {
 public:
  using levels = std::span<const json_level>;

  explicit header_visitor(const std::filesystem::path& file) : file_(file) {}

  void open(levels at, bool is_object) {
    if (is_passed_over(at)) {
      return;
    }
    if (at.size() == 1 && is_object) {
      if (at[0].key != metadata_key) {
        entries.emplace_back().name = at[0].key;
      }
    } else if (at.size() == 2 && !is_object && at[0].key != metadata_key && is_list(at[1].key)) {
      entries.back().has_shape |= at[1].key == "shape";
    } else if (!at.empty()) {
      unexpected(at, is_object ? "an object" : "a list");
    }
  }

  void scalar(levels at, const json_scalar& value) {
    if (is_passed_over(at) || (at.size() == 1 && at[0].key == metadata_key && value.is_null)) {
      return;  // null metadata are none
    }
    const bool in_entry = at.size() > 1 && at[0].key != metadata_key;
    if (at.size() == 2 && !in_entry && value.text != nullptr) {
      metadata.emplace(at[1].key, *value.text);
    } else if (at.size() == 2 && in_entry && at[1].key == "dtype" && value.text != nullptr) {
      entries.back().type = dtype_from_string(*value.text);
      if (!entries.back().type) {
        refuse(at, "unknown dtype '", io::printable(*value.text), "'");
      }
    } else if (at.size() == 3 && in_entry && value.integer) {
      number(at, *value.integer);
    } else {
      unexpected(at, value.text != nullptr ? "text" : at.size() == 3 ? "no integer from 0 up" : "a value");
    }
  }

  std::vector<tensor_entry> entries;
  std::map<std::string, std::string> metadata;

  static constexpr std::string_view metadata_key = "__metadata__";

 private:
  /// Whether this is a field of an entry that the format does not know: readers pass over it.
  static bool is_passed_over(levels at) {
    return at.size() > 1 && at[0].key != metadata_key && at[1].key != "dtype" && !is_list(at[1].key);
  }
  static bool is_list(std::string_view key) { return key == "shape" || key == "data_offsets"; }

  void number(levels at, std::uint64_t value) {
    if (at[1].key == "shape") {
      if (value > static_cast<std::uint64_t>(std::numeric_limits<index_t>::max())) {
        refuse(at, "the dimension ", value, " is too large");
      }
      entries.back().shape.push_back(static_cast<index_t>(value));
    } else {
      entries.back().offsets.push_back(value);
    }
  }
  template <class... Parts>
  [[noreturn]] void refuse(levels at, const Parts&... reason) const {
    io::file_failure(file_, "tensor '", io::printable(at[0].key), "': ", reason...);
  }
  [[noreturn]] void unexpected(levels at, std::string_view what) const {
    if (at[0].key == metadata_key) {
      io::file_failure(file_, "the metadata holds ", what, " where only text may be");
    }
    refuse(at, at.size() == 1 ? "the header holds " : "its entry holds ", what,
           at.size() == 1 ? " in place of its entry"
                          : core::concatenate(" under '", io::printable(at[1].key), "'"));
  }

  const std::filesystem::path& file_;
};

}  // namespace detail

/// A safetensors file, mapped and checked. The constructor reads the header and refuses, with a file_error
/// that names file and tensor: a file or header that is cut short, a header over 100 MB or that is not the
/// JSON above, duplicate keys, unknown dtypes, sizes that disagree with shape and dtype, offsets that
/// overlap, leave gaps, overflow, or point outside the file. No tensor is read before it is touched.
/// Complexity: O(header); immutable afterwards, so any number of threads may read. Movable: tensors keep
/// their place.
class safetensors_file {
 public:
  explicit safetensors_file(std::filesystem::path path)
      : map_(std::make_unique<mapped_file>(std::move(path))) {
    const auto bytes = map_->bytes();
    header_ = bytes.first(header_size(bytes));
    const auto text = header_.subspan(sizeof(std::uint64_t));
    detail::header_visitor header(this->path());
    detail::read_strict_json(this->path(), {reinterpret_cast<const char*>(text.data()), text.size()}, header);
    metadata_ = std::move(header.metadata);
    place(header.entries, bytes.subspan(header_.size()));
  }

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return map_->path(); }
  /// The whole file.
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return map_->bytes(); }
  /// The length field and the header, as they stand in the file.
  [[nodiscard]] std::span<const std::byte> header() const noexcept { return header_; }
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }
  /// All tensors, in the order of their bytes in the file.
  [[nodiscard]] std::span<const stored_tensor> tensors() const noexcept { return tensors_; }

  /// The tensor of that name, or null. O(log n).
  [[nodiscard]] const stored_tensor* find(std::string_view name) const noexcept {
    const auto it =
        std::lower_bound(by_name_.begin(), by_name_.end(), name,
                         [this](std::size_t i, auto wanted) { return tensors_[i].name() < wanted; });
    return it != by_name_.end() && tensors_[*it].name() == name ? &tensors_[*it] : nullptr;
  }
  /// The tensor of that name. Throws file_error if there is none.
  [[nodiscard]] const stored_tensor& at(std::string_view name) const {
    const stored_tensor* const found = find(name);
    if (found == nullptr) {
      fail("has no tensor '", io::printable(name), "'");
    }
    return *found;
  }

  static constexpr std::uint64_t longest_header = detail::longest_header;

 private:
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... reason) const {
    io::file_failure(path(), reason...);
  }

  /// The bytes of the length field and the header. Refuses what cannot be a safetensors file, and says what
  /// it is where it can.
  [[nodiscard]] std::size_t header_size(std::span<const std::byte> bytes) const {
    std::uint64_t length = 0;
    const auto rest = bytes.subspan(std::min(bytes.size(), sizeof length));
    const bool is_json = detail::starts_object({reinterpret_cast<const char*>(rest.data()), rest.size()});
    const std::string kind = is_json ? "" : foreign_kind(bytes);
    const auto refuse_unless = [&](bool condition, const auto&... reason) {
      if (!condition) {
        fail(kind.empty() ? core::concatenate(reason...) : kind);
      }
    };
    refuse_unless(bytes.size() >= sizeof length, "is too short for a safetensors file: ", bytes.size(),
                  " bytes");
    std::memcpy(&length, bytes.data(), sizeof length);
    refuse_unless(length <= longest_header, "is no safetensors file: its header would have ", length,
                  " bytes, more than ", longest_header);
    refuse_unless(length <= rest.size(), "is cut short: its header has ", length, " bytes, the file ",
                  bytes.size());
    refuse_unless(is_json, "its JSON does not start with '{'");
    return sizeof length + length;
  }

  /// Checks each entry against its neighbours and the data, and makes the tensors.
  void place(std::vector<detail::tensor_entry>& entries, std::span<const std::byte> data) {
    for (const auto& e : entries) {
      check(e, data.size());
    }
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
      return std::tie(a.offsets[0], a.offsets[1], a.name) < std::tie(b.offsets[0], b.offsets[1], b.name);
    });
    std::uint64_t end = 0;
    for (auto& e : entries) {
      if (e.offsets[0] != end) {
        io::tensor_failure(path(), e.name, "its bytes start at ", e.offsets[0],
                           e.offsets[0] < end ? ", inside the tensor before it, which ends at "
                                              : " and leave a gap after the tensor before it, which ends at ",
                           end);
      }
      end = e.offsets[1];
      tensors_.emplace_back(path(), std::move(e.name), *e.type, std::move(e.shape),
                            data.subspan(e.offsets[0], end - e.offsets[0]));
    }
    if (end != data.size()) {
      fail("its tensors end at byte ", end, " of its data, which has ", data.size());
    }
    by_name_.resize(tensors_.size());
    std::iota(by_name_.begin(), by_name_.end(), std::size_t{0});
    std::sort(by_name_.begin(), by_name_.end(),
              [this](std::size_t a, std::size_t b) { return tensors_[a].name() < tensors_[b].name(); });
  }

  void check(const detail::tensor_entry& e, std::uint64_t data_size) const {
    const auto refuse = [&](const auto&... reason) { io::tensor_failure(path(), e.name, reason...); };
    if (!e.type || !e.has_shape || e.offsets.size() != 2) {
      refuse(!e.type        ? "its entry has no dtype"
             : !e.has_shape ? "its entry has no shape"
                            : "its entry has no data_offsets of two numbers");
    }
    const std::uint64_t begin = e.offsets[0];
    const std::uint64_t end = e.offsets[1];
    if (end < begin) {
      refuse("its data_offsets [", begin, ", ", end, "] end before they begin");
    }
    if (end > data_size) {
      refuse("its data_offsets [", begin, ", ", end, "] reach past the file, which holds ", data_size,
             " bytes of data: it is cut short, or its download was not finished");
    }
    const auto size = detail::byte_size(*e.type, e.shape);
    if (!size) {
      refuse("the size of ", to_string(e.shape), " ", to_string(*e.type),
             " overflows or is no whole number of bytes");
    }
    if (*size != end - begin) {
      refuse(to_string(e.shape), " ", to_string(*e.type), " takes ", *size, " bytes, its data_offsets hold ",
             end - begin);
    }
  }

  std::unique_ptr<const mapped_file> map_;  // by pointer: tensors refer to its path
  std::span<const std::byte> header_;
  std::map<std::string, std::string> metadata_;
  std::vector<stored_tensor> tensors_;
  std::vector<std::size_t> by_name_;
};

MPIROUTER_END
