// Cores by affinity, and quotas in files as the system lays them out.
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

#include "check.h"
#include "cpu/cores.h"

namespace {

// The quota that a system with these files has.
double quota_of(const std::map<std::string, std::string>& files) {
  std::string root = (std::filesystem::temp_directory_path() / "hifuse_coresXXXXXX").string();
  if (!mkdtemp(root.data())) return -1;
  for (const auto& [name, text] : files) {
    const std::filesystem::path path = root + name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  const double quota = hifuse::cpu_quota(root);
  std::filesystem::remove_all(root);
  return quota;
}

void test_quota() {
  const std::string groups = "/proc/self/cgroup", v2 = "/sys/fs/cgroup", v1 = "/sys/fs/cgroup/cpu,cpuacct";
  CHECK(quota_of({}) == 0);
  // v2: of the group itself, of one around it, the least of both, none
  CHECK(quota_of({{groups, "0::/\n"}, {v2 + "/cpu.max", "150000 100000\n"}}) == 1.5);
  CHECK(quota_of({{groups, "0::/a/b\n"}, {v2 + "/a/cpu.max", "200000 100000\n"}, {v2 + "/a/b/cpu.max", "max 100000\n"}}) == 2);
  CHECK(quota_of({{groups, "0::/a/b\n"}, {v2 + "/a/cpu.max", "50000 100000\n"}, {v2 + "/a/b/cpu.max", "4000 1000\n"}}) == 0.5);
  CHECK(quota_of({{groups, "0::/a\n"}, {v2 + "/a/cpu.max", "max 100000\n"}}) == 0);
  // v2 in a container whose group has the host's name
  CHECK(quota_of({{groups, "0::/docker/12ab\n"}, {v2 + "/cpu.max", "300000 100000\n"}}) == 3);
  // v1: by the controllers' names, or by the link "cpu"
  const std::string both = "5:cpuset:/x\n4:cpu,cpuacct:/a\n0::/\n";
  CHECK(quota_of({{groups, both}, {v1 + "/a/cpu.cfs_quota_us", "250000\n"}, {v1 + "/a/cpu.cfs_period_us", "100000\n"}}) == 2.5);
  CHECK(quota_of({{groups, both}, {v1 + "/a/cpu.cfs_quota_us", "-1\n"}, {v1 + "/a/cpu.cfs_period_us", "100000\n"}}) == 0);
  CHECK(quota_of({{groups, "4:cpuacct,cpu:/\n"},
                  {v2 + "/cpu/cpu.cfs_quota_us", "100000\n"},
                  {v2 + "/cpu/cpu.cfs_period_us", "50000\n"}}) == 2);
  // damaged files are as none
  CHECK(quota_of({{groups, "0::\n:::\n\n7\n0::/a:b\n"}, {v2 + "/cpu.max", "many\n"}}) == 0);
  CHECK(quota_of({{groups, "0::/\n"}, {v2 + "/cpu.max", "100000 0\n"}}) == 0);
}

void test_affinity() {
  CHECK(hifuse::usable_cores() >= 1);
#if defined(__linux__)
  int64_t cores = 0;
  std::thread([&] {  // the affinity is that of a thread
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    if (sched_setaffinity(0, sizeof one, &one) == 0) cores = hifuse::usable_cores();
  })
      .join();
  CHECK(cores == 1);
#endif
}

}  // namespace

void test_cores() {
  test_quota();
  test_affinity();
}
