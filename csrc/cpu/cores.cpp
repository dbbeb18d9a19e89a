#include "cpu/cores.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace hifuse {
namespace {

int64_t affinity() {
#if defined(__linux__)
  for (int most = 1024; most <= 1 << 20; most *= 2) {  // the system refuses a set that is smaller than its own
    cpu_set_t* const set = CPU_ALLOC(most);
    if (!set) break;
    const bool known = sched_getaffinity(0, CPU_ALLOC_SIZE(most), set) == 0;
    const int count = known ? CPU_COUNT_S(CPU_ALLOC_SIZE(most), set) : 0;
    CPU_FREE(set);
    if (known) return count;
  }
#endif
  return std::thread::hardware_concurrency();
}

// The numbers in a file; "max", where there is no limit, is none.
std::vector<double> numbers(const std::string& path) {
  std::ifstream file(path);
  std::vector<double> found;
  for (double number; file >> number;) found.push_back(number);
  return found;
}

// Of one control group in cores, 0 where it has none; v2 has both numbers in one file.
double quota_of(const std::string& group) {
  std::vector<double> found = numbers(group + "/cpu.max");
  if (found.empty()) {
    found = numbers(group + "/cpu.cfs_quota_us");
    const std::vector<double> period = numbers(group + "/cpu.cfs_period_us");
    found.insert(found.end(), period.begin(), period.end());
  }
  return found.size() == 2 && found[0] > 0 && found[1] > 0 ? found[0] / found[1] : 0;
}

// The least of a group and all groups around it. Within a container the group may be named as the host sees it, and its files
// lie at the top: they come last here.
double quota_along(const std::string& mount, std::string group) {
  double least = 0;
  for (;;) {
    const double quota = quota_of(mount + group);
    if (quota > 0) least = least > 0 ? std::min(least, quota) : quota;
    if (group.empty()) return least;
    group.erase(group.rfind('/'));
  }
}

}  // namespace

double cpu_quota(const std::string& root) {
  const std::string mount = root + "/sys/fs/cgroup";
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "4:cpu,cpuacct:/group" of v1, "0::/group" of v2
    std::istringstream fields(line);
    std::string number, controllers, group;
    std::getline(std::getline(std::getline(fields, number, ':'), controllers, ':'), group);
    if (group.empty() || group[0] != '/') continue;
    if (group == "/") group.clear();
    const bool unified = controllers.empty(), cpu = ("," + controllers + ",").find(",cpu,") != std::string::npos;
    if (!unified && !cpu) continue;
    for (const std::string& place : {mount + (unified ? "" : "/" + controllers), mount + (unified ? "/unified" : "/cpu")})
      if (const double quota = quota_along(place, group); quota > 0) return quota;
  }
  return 0;
}

int64_t usable_cores() {
  static const double quota = cpu_quota();  // read once: it lies in files
  const int64_t cores = std::max<int64_t>(affinity(), 1);
  return quota > 0 ? std::min(cores, static_cast<int64_t>(std::ceil(quota))) : cores;
}

}  // namespace hifuse
