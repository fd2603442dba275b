// How trampolines pass arguments: objects that convert to whatever the kernel's parameter is.
struct __soft_context {  // mirrors soft::Context
  ulong buffers[32];
  ulong threadgroup_memory[32];
  uint3 thread_position_in_grid, threadgroup_position_in_grid, thread_position_in_threadgroup,
      threads_per_threadgroup, threadgroups_per_grid, threads_per_grid;
  uint thread_index_in_threadgroup, thread_index_in_simdgroup, simdgroup_index_in_threadgroup,
      simdgroups_per_threadgroup;
};
struct __soft_argument {
  ulong p;
  int index;
  template <class T>
  operator device T*() const {
    return (device T*)p;
  }
  template <class T>
  operator constant T*() const {
    return (constant T*)p;
  }
  template <class T>
  operator threadgroup T*() const {
    return (threadgroup T*)p;
  }
  template <class T>
  operator constant T&() const {
    soft_check_argument(index, sizeof(T));
    return *(constant T*)p;
  }
  template <class T>
  operator device T&() const {
    soft_check_argument(index, sizeof(T));
    return *(device T*)p;
  }
};
struct __soft_position {
  uint3 v;
  operator uint() const { return v.x; }
  operator ushort() const { return (ushort)v.x; }
  operator uint2() const { return v.xy; }
  operator uint3() const { return v; }
  operator ushort2() const { return __builtin_convertvector(v.xy, ushort2); }
  operator ushort3() const { return __builtin_convertvector(v, ushort3); }
};
