// A safetensors file: 8 bytes that say how long its header is, the header in JSON, the tensors.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "c/json.h"
#include "c/memory.h"

namespace hifuse::c {

struct FileTensor {
  std::string dtype;  // as "F32"
  int64_t count;      // of elements
  int64_t bytes;
  int64_t offset;  // of the first byte in the file
  const char* data = nullptr;
};

class File {
 public:
  // Reads the header. Refused where the file is damaged, or no file.
  explicit File(const char* path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // A text of the metadata; null where there is none.
  const std::string* metadata(std::string_view key) const;

  // Refused, by name, where there is none.
  const FileTensor& tensor(const std::string& name) const;

  // Reads the tensors into memory that the caller keeps, each from a line of the cache on: in the file they lie where they
  // fall, and a map of it would change with it.
  Memory read();

  // The memory that was read lies elsewhere from now on.
  void move(const char* from, const char* to);

 private:
  void read_header();
  void add_tensor(const std::string& name, const Json& entry);
  void read_at(int64_t offset, char* to, int64_t bytes) const;

  int descriptor_ = -1;
  int64_t size_ = 0;
  int64_t first_ = 0;  // of the tensors, in bytes from the beginning
  Json metadata_;
  std::map<std::string, FileTensor> tensors_;
};

}  // namespace hifuse::c
