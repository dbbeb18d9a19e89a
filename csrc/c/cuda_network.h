// A network on a CUDA device: where its weights and maps lie, and how calls of several streams and threads share it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "c/network.h"
#include "hifuse/cuda.h"

namespace hifuse::c {

class OnDevice {
 public:
  OnDevice(int device, const hifuse_cuda_memory* memory);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  int multiprocessors() const { return multiprocessors_; }

  bool begin_early = false;  // whether launches may begin before those before them have ended

  // Copies weights to the device, and says where they lie.
  const char* load(const Memory& weights);

  // Images and results are on the device: puts the calls on a stream. Or they are on the host: waits for the results.
  void run(const hifuse_network& network, const hifuse_images& images, float* results, void* stream);
  void run_for_host(const hifuse_network& network, const hifuse_images& images, float* results);

 private:
  // Memory of the device that grows, in the order of a stream.
  struct Block {
    char* data = nullptr;
    int64_t bytes = 0;
  };
  // What the runs of one stream work on, one after another.
  struct Lane {
    std::mutex lock;
    Block maps;
  };
  // What a call from the host works on, and its own stream.
  struct Visit {
    void* stream = nullptr;
    Lane lane;
    Block images, results;
  };

  bool grow(Block& block, int64_t bytes, void* stream);  // whether it has other memory now
  void give(Block& block, void* stream) noexcept;
  void run_on(Lane& lane, const hifuse_network& network, const hifuse_images& images, float* results, void* stream);
  void visit(Visit& visit, const hifuse_network& network, const hifuse_images& images, float* results);

  const int device_;
  hifuse_cuda_memory memory_;
  int multiprocessors_ = 0;
  Block weights_;
  std::mutex lock_;
  std::map<void*, std::unique_ptr<Lane>> lanes_;  // of each stream
  std::vector<std::unique_ptr<Visit>> visits_;    // all, of which `idle_` serve no call
  std::vector<Visit*> idle_;
};

}  // namespace hifuse::c
