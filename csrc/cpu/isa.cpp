#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "cpu/avx_vnni.h"
#include "isa_list.h"  // written by CMake: HIFUSE_FOR_EACH_ISA(f) is f(baseline) f(avx2) ...

namespace hifuse {

// Defined by table.cpp, once per instruction set.
#define DECLARE(name)             \
  namespace name {                \
  extern const KernelTable table; \
  }
HIFUSE_FOR_EACH_ISA(DECLARE)
#undef DECLARE

bool has_avx_vnni() {
#if defined(__x86_64__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
#else
  return false;
#endif
}

namespace isa {
namespace {

struct Set {
  const char* name;
  const KernelTable* table;
};

#define ROW(name) {#name, &name::table},
constexpr Set kSets[] = {HIFUSE_FOR_EACH_ISA(ROW)};
#undef ROW

// Whether this CPU has the tiles of AMX, for bfloat16 and int8, and Linux lets this process use them: a program has to ask for
// registers of 8 KB, for all of its threads.
bool has_amx() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr unsigned kBFloat16 = 1u << 22, kTiles = 1u << 24, kInt8 = 1u << 25, kAll = kBFloat16 | kTiles | kInt8;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & kAll) != kAll) return false;
  constexpr long kAskForRegisters = 0x1023, kTileRegisters = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kAskForRegisters, kTileRegisters) == 0;
#else
  return false;
#endif
}

// __builtin_cpu_supports asks the CPU (cpuid) and whether the operating system saves the registers (xgetbv).
bool runs_here(const std::string& name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (name == "avx2") return avx2;
  if (name == "avx512") return avx512;
  const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  if (name == "avx512_bf16") return avx512_bf16;
  if (name == "amx") return avx512_bf16 && has_amx();
#endif
  return name == "baseline";
}

const Set* find(const std::string& name) {
  for (const Set& set : kSets)
    if (name == set.name && runs_here(name)) return &set;
  return nullptr;
}

// The most capable set, but none above what ATEN_CPU_CAPABILITY (default, avx2, avx512) caps PyTorch's own kernels to.
const Set* choose() {
  const char* capability = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string limit = capability ? capability : "";
  const Set* best = find("baseline");
  for (const Set& set : kSets) {
    if (find(set.name)) best = &set;
    if (limit == set.name || limit == "default") break;
  }
  return best;
}

std::atomic<const Set*>& active() {
  static std::atomic<const Set*> set{choose()};
  return set;
}

}  // namespace

std::vector<std::string> compiled() {
  std::vector<std::string> names;
  for (const Set& set : kSets) names.push_back(set.name);
  return names;
}

std::vector<std::string> usable() {
  std::vector<std::string> names;
  for (const Set& set : kSets)
    if (runs_here(set.name)) names.push_back(set.name);
  return names;
}

std::string current() { return active().load()->name; }

void select(const std::string& name) {
  const Set* set = find(name);
  if (!set) throw std::invalid_argument("instruction set '" + name + "' is not compiled in or does not run on this machine");
  active().store(set);
}

const KernelTable& kernels() { return *active().load()->table; }

}  // namespace isa
}  // namespace hifuse
