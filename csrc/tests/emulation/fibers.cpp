// x86-64 has its own switch, of 14 ns; other CPUs take ucontext, which makes system calls. HIFUSE_UCONTEXT asks for that one.
#include "fibers.h"

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <vector>

#if defined(__x86_64__) && !defined(HIFUSE_UCONTEXT)
#define HIFUSE_OWN_SWITCH 1
#else
#include <ucontext.h>
#endif

namespace hifuse::emulation::fibers {
namespace {

constexpr size_t kStack = 256 * 1024, kGuard = 4096;  // the guard lies below a stack, and may not be touched

std::byte* stacks = nullptr;
size_t stack_count = 0;

void make_stacks(size_t count) {
  if (count <= stack_count) return;
  if (stacks) munmap(stacks, stack_count * kStack);
  void* p = mmap(nullptr, count * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) std::abort();
  stacks = static_cast<std::byte*>(p);
  stack_count = count;
  for (size_t i = 0; i < count; ++i) mprotect(stacks + i * kStack, kGuard, PROT_NONE);
}

}  // namespace

bool own(const void* p) {
  const auto* q = static_cast<const std::byte*>(p);
  return q >= stacks && q < stacks + stack_count * kStack;
}

#if HIFUSE_OWN_SWITCH

// Keeps the registers that a call must keep, and the stack, at *from; goes on with those at `to`.
extern "C" [[gnu::visibility("hidden")]] void hifuse_switch(void** from, void* to);
asm(R"(
.text
.globl hifuse_switch
.hidden hifuse_switch
.type hifuse_switch,@function
hifuse_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size hifuse_switch,.-hifuse_switch
)");

namespace {
void* scheduler = nullptr;
std::vector<void*> tops;
}  // namespace

void prepare(unsigned count, void (*entry)()) {
  make_stacks(count);
  tops.resize(count);
  for (unsigned i = 0; i < count; ++i) {
    auto* top = reinterpret_cast<void**>(stacks + (i + 1) * kStack) - 1;  // aligned as behind a call
    *--top = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    tops[i] = top;
  }
}
void resume(unsigned i) { hifuse_switch(&scheduler, tops[i]); }
void yield(unsigned i) { hifuse_switch(&tops[i], scheduler); }

#else

namespace {
ucontext_t scheduler;
std::vector<ucontext_t> contexts;
}  // namespace

void prepare(unsigned count, void (*entry)()) {
  make_stacks(count);
  contexts.resize(count);
  for (unsigned i = 0; i < count; ++i) {
    getcontext(&contexts[i]);
    contexts[i].uc_stack.ss_sp = stacks + i * kStack + kGuard;
    contexts[i].uc_stack.ss_size = kStack - kGuard;
    contexts[i].uc_link = nullptr;
    makecontext(&contexts[i], entry, 0);
  }
}
void resume(unsigned i) { swapcontext(&scheduler, &contexts[i]); }
void yield(unsigned i) { swapcontext(&contexts[i], &scheduler); }

#endif

}  // namespace hifuse::emulation::fibers
