#include "c/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "c/border.h"

namespace hifuse::c {
namespace {

constexpr int64_t kLongestHeader = int64_t{16} << 20;

int64_t bytes_of_an_element(const std::string& dtype) {
  constexpr std::pair<std::string_view, int64_t> kBytes[] = {{"F32", 4}, {"BF16", 2}, {"F16", 2}, {"I8", 1}};
  for (const auto& [name, bytes] : kBytes)
    if (dtype == name) return bytes;
  refuse("dtype must be F32, BF16, F16 or I8, got ", dtype);
}

}  // namespace

File::File(const char* path) {
  require(path, "path must not be NULL");
  struct stat what{};
  const bool there = stat(path, &what) == 0;
  require(there, path, ": ", std::strerror(errno));
  require(S_ISREG(what.st_mode), path, " is no file");  // and so never waits for a pipe
  descriptor_ = open(path, O_RDONLY | O_CLOEXEC);
  require(descriptor_ >= 0, path, ": ", std::strerror(errno));
  try {
    require(fstat(descriptor_, &what) == 0, "its size is not known");
    size_ = what.st_size;
    read_header();
  } catch (const Refused& error) {
    close(descriptor_);
    refuse(path, " is no safetensors file, or damaged: ", error.what());
  } catch (...) {
    close(descriptor_);
    throw;
  }
}

File::~File() { close(descriptor_); }

void File::read_header() {
  unsigned char length[8];
  require(size_ >= 8, "it has ", size_, " bytes");
  read_at(0, reinterpret_cast<char*>(length), 8);
  uint64_t bytes = 0;
  for (int i = 7; i >= 0; --i) bytes = bytes << 8 | length[i];
  require(bytes <= static_cast<uint64_t>(size_ - 8), "its header would be ", bytes, " bytes long, and it has ", size_);
  require(bytes <= static_cast<uint64_t>(kLongestHeader), "its header is ", bytes, " bytes long, more than ", kLongestHeader);
  first_ = 8 + static_cast<int64_t>(bytes);
  std::string text(bytes, '\0');
  read_at(8, text.data(), static_cast<int64_t>(bytes));
  Json header = parse_json(text);
  require(header.kind == Json::Kind::object, "its header is no object");
  int64_t total = 0;
  for (auto& [name, entry] : header.members) {
    if (name == "__metadata__") {
      require(entry.kind == Json::Kind::object, "__metadata__ is no object");
      metadata_ = std::move(entry);
      continue;
    }
    add_tensor(name, entry);
    total += tensors_[name].bytes;
    require(total <= size_, "its tensors overlap");
  }
}

void File::add_tensor(const std::string& name, const Json& entry) try {
  FileTensor tensor;
  tensor.dtype = entry.at("dtype").as_text("dtype");
  tensor.count = 1;
  for (const Json& axis : entry.at("shape").as_items("shape"))
    require(!__builtin_mul_overflow(tensor.count, axis.as_integer("shape", 0, INT32_MAX * int64_t{16}), &tensor.count) &&
                tensor.count <= size_,
            "its shape is larger than the file");
  tensor.bytes = tensor.count * bytes_of_an_element(tensor.dtype);
  const auto& offsets = entry.at("data_offsets").as_items("data_offsets");
  require(offsets.size() == 2, "data_offsets must be two, got ", offsets.size());
  const int64_t begin = offsets[0].as_integer("data_offsets", 0, size_ - first_);
  const int64_t end = offsets[1].as_integer("data_offsets", begin, size_ - first_);
  require(end - begin == tensor.bytes, "data_offsets must be ", tensor.bytes, " bytes apart, got ", end - begin);
  tensor.offset = first_ + begin;
  tensors_.emplace(name, std::move(tensor));
} catch (const Refused& error) {
  refuse("tensor ", name, ": ", error.what());
}

const std::string* File::metadata(std::string_view key) const {
  const Json* const found = metadata_.find(key);
  return found ? &found->as_text("metadata") : nullptr;
}

const FileTensor& File::tensor(const std::string& name) const {
  const auto found = tensors_.find(name);
  require(found != tensors_.end(), "the tensor ", name, " is missing");
  return found->second;
}

Memory File::read() {
  int64_t total = 0;
  for (const auto& [name, tensor] : tensors_) total += whole_lines(tensor.bytes);
  Memory memory;
  memory.grow(std::max(total, kLine));
  char* at = memory.data();
  for (auto& [name, tensor] : tensors_) {
    read_at(tensor.offset, at, tensor.bytes);
    tensor.data = at;
    at += whole_lines(tensor.bytes);
  }
  return memory;
}

void File::move(const char* from, const char* to) {
  for (auto& [name, tensor] : tensors_) tensor.data = to + (tensor.data - from);
}

void File::read_at(int64_t offset, char* to, int64_t bytes) const {
  while (bytes > 0) {
    const ssize_t count = pread(descriptor_, to, static_cast<size_t>(bytes), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    require(count >= 0, "it cannot be read: ", std::strerror(errno));
    require(count > 0, "it became shorter while it was read");
    offset += count, to += count, bytes -= count;
  }
}

}  // namespace hifuse::c
