#include "metal_classes.h"
#include "toolchain.h"

#include <cstring>
#include <fstream>
#include <sstream>

namespace soft {
namespace metal {

using foundation::fail;

namespace {

constexpr const char* kLibraryDomain = "MTLLibraryErrorDomain";
constexpr const char* kArchiveDomain = "MTLBinaryArchiveDomain";
constexpr const char* kPipelineDomain = "AGXMetal";

struct ScalarType {
  MTL::DataType type;
  size_t bytes;
  const char* names[4];  // in MSL
};

constexpr ScalarType kScalarTypes[] = {
    {MTL::DataTypeBool, 1, {"bool"}},
    {MTL::DataTypeChar, 1, {"char", "int8_t"}},
    {MTL::DataTypeUChar, 1, {"uchar", "uint8_t", "unsigned char"}},
    {MTL::DataTypeShort, 2, {"short", "int16_t"}},
    {MTL::DataTypeUShort, 2, {"ushort", "uint16_t", "unsigned short"}},
    {MTL::DataTypeInt, 4, {"int", "int32_t"}},
    {MTL::DataTypeUInt, 4, {"uint", "uint32_t", "unsigned", "unsigned int"}},
    {MTL::DataTypeLong, 8, {"long", "int64_t", "ptrdiff_t"}},
    {MTL::DataTypeULong, 8, {"ulong", "uint64_t", "unsigned long", "size_t"}},
    {MTL::DataTypeHalf, 2, {"half"}},
    {MTL::DataTypeBFloat, 2, {"bfloat"}},
    {MTL::DataTypeFloat, 4, {"float"}},
};

const ScalarType* scalar_type(MTL::DataType type) {
  for (const ScalarType& known : kScalarTypes)
    if (known.type == type) return &known;
  return nullptr;
}

const ScalarType* scalar_type(const std::string& name) {
  for (const ScalarType& known : kScalarTypes)
    for (const char* its_name : known.names)
      if (its_name && name == its_name) return &known;
  return nullptr;
}

std::map<std::string, std::string> definitions(const foundation::Dictionary* macros) {
  std::map<std::string, std::string> defines;
  if (!macros) return defines;
  for (const auto& [key, value] : macros->entries) {
    const auto* name = foundation::as<String>(key.get());
    const auto* text = foundation::as<String>(value.get());
    const auto* number = foundation::as<foundation::Number>(value.get());
    if (!name || (!text && !number))
      misuse("preprocessorMacros: names are strings, values strings or numbers");
    else
      defines[name->text] = text ? text->text : number->text()->text;
  }
  return defines;
}

}  // namespace

// ---- MTLCompileOptions, MTLLibrary ----

void CompileOptions::assign(const CompileOptions& o) {
  math_mode = o.math_mode;
  functions = o.functions;
  language = o.language;
  optimization = o.optimization;
  preserve_invariance = o.preserve_invariance;
  macros = o.macros;
}

Library* Device::new_library(String* source, CompileOptions* options, Error** error) {
  if (error) *error = nullptr;
  if (!source) return misuse("newLibraryWithSource: nil"), nullptr;
  soft::CompileOptions how;
  how.instrumented = settings.mode.check || settings.mode.count;
  how.fast_math = !options || options->fast_math();
  how.defines = definitions(options ? options->macros.get() : nullptr);
  std::string log;
  auto code = std::make_shared<Code>();
  code->library = compile(source->text, how, log);
  if (!code->library) return fail(error, kLibraryDomain, MTL::LibraryErrorCompileFailure, log);
  if (!log.empty()) fail(error, kLibraryDomain, MTL::LibraryErrorCompileWarning, log);
  code->hash = hash_text(source->text);
  for (const auto& [name, value] : how.defines) code->hash = hash_text("\n" + name + "=" + value, code->hash);
  code->hash = hash_text(how.fast_math ? "fast" : "safe", code->hash);
  Library* library = make<Library>();
  library->device = this;
  library->code = std::move(code);
  return library;
}

Array* Library::function_names() const {
  std::vector<Ref<Object>> names;
  for (const Kernel& kernel : code->library->kernels)
    names.emplace_back(Ref<Object>::adopt(make<String>(kernel.host_name)));
  return foundation::array(std::move(names));
}

// ---- function constants ----

void FunctionConstantValues::assign(const FunctionConstantValues& o) {
  by_index = o.by_index;
  by_name = o.by_name;
}

void FunctionConstantValues::reset() {
  by_index.clear();
  by_name.clear();
}

static FunctionConstantValues::Value constant_value(const void* value, MTL::DataType type) {
  const ScalarType* scalar = scalar_type(type);
  if (!scalar) fatal("not implemented: function constants of MTLDataType " + std::to_string(UInteger(type)));
  FunctionConstantValues::Value result;
  result.type = type;
  std::memcpy(&result.bits, value, scalar->bytes);
  return result;
}

void FunctionConstantValues::set(const void* value, MTL::DataType type, UInteger index) {
  by_index[int(index)] = constant_value(value, type);
}

void FunctionConstantValues::set_range(const void* values, MTL::DataType type, NS::Range range) {
  const ScalarType* scalar = scalar_type(type);
  for (UInteger i = 0; i < range.length; i++)
    set(static_cast<const char*>(values) + i * (scalar ? scalar->bytes : 0), type, range.location + i);
}

void FunctionConstantValues::set_named(const void* value, MTL::DataType type, String* name) {
  by_name[foundation::text_of(name)] = constant_value(value, type);
}

// The values given for the constants of a library; an error text if one has another type there.
static std::string resolve_constants(const soft::Library& library, const FunctionConstantValues* values,
                                     std::map<int, uint64_t>& constants) {
  if (!values) return "";
  for (const FunctionConstant& constant : library.constants) {
    const FunctionConstantValues::Value* value = nullptr;
    auto by_index = values->by_index.find(constant.index);
    if (by_index != values->by_index.end()) value = &by_index->second;
    auto by_name = values->by_name.find(constant.name);
    if (by_name != values->by_name.end()) value = &by_name->second;
    if (!value) continue;
    const ScalarType* declared = scalar_type(constant.type);
    if (declared && declared->type != value->type)
      return "function constant '" + constant.name + "' is of type " + constant.type +
             ", its value of type " + scalar_type(value->type)->names[0];
    constants[constant.index] = value->bits;
  }
  return "";
}

// The first constant without a value that decides over an argument: others are only known to the kernel.
static const FunctionConstant* missing_constant(const soft::Library& library, const Kernel& kernel,
                                                const std::map<int, uint64_t>& constants) {
  for (const Argument& argument : kernel.arguments)
    for (const FunctionConstant& constant : library.constants)
      if (constant.name == argument.function_constant && !constants.count(constant.index)) return &constant;
  return nullptr;
}

Function* Library::new_function(String* name) {
  Error* ignored = nullptr;
  return new_function_with(name, nullptr, &ignored);
}

Function* Library::new_function_with(String* name, FunctionConstantValues* values, Error** error) {
  if (error) *error = nullptr;
  if (!name) return misuse("newFunctionWithName: nil"), nullptr;
  const Kernel* kernel = code->library->find(name->text);
  if (!kernel)
    return fail(error, kLibraryDomain, MTL::LibraryErrorFunctionNotFound,
                "there is no function named '" + name->text + "'");
  std::map<int, uint64_t> constants;
  const std::string why = resolve_constants(*code->library, values, constants);
  if (!why.empty()) return fail(error, kLibraryDomain, MTL::LibraryErrorCompileFailure, why);
  if (const FunctionConstant* missing = missing_constant(*code->library, *kernel, constants))
    return fail(error, kLibraryDomain, MTL::LibraryErrorCompileFailure,
                "function '" + name->text + "' needs function constant '" + missing->name + "' (index " +
                    std::to_string(missing->index) + "), which has no value");
  Function* function = make<Function>();
  function->device = device;
  function->code = code;
  function->kernel = kernel;
  function->constants = std::move(constants);
  return function;
}

String* Function::name() const { return foundation::string(kernel->host_name); }

std::string Function::description() const {
  std::string text = kernel->host_name;
  for (const auto& [index, value] : constants)
    text += " " + std::to_string(index) + "=" + std::to_string(value);
  return text;
}

// ---- pipelines ----

void ComputePipelineDescriptor::assign(const ComputePipelineDescriptor& o) {
  function = o.function;
  label = o.label;
  archives = o.archives;
  multiple_of_width = o.multiple_of_width;
  max_threads = o.max_threads;
  indirect = o.indirect;
}

static ComputePipelineState* make_pipeline(Device* device, Function* function) {
  auto program = std::make_shared<Program>();
  program->code = function->code;
  program->kernel = function->kernel;
  program->constants = function->constants;
  program->max_threads = device->settings.max_threads;
  if (function->kernel->max_threads != 0)
    program->max_threads = std::min(program->max_threads, function->kernel->max_threads);
  ComputePipelineState* pipeline = make<ComputePipelineState>();
  pipeline->device = device;
  pipeline->program = std::move(program);
  return pipeline;
}

ComputePipelineState::~ComputePipelineState() {
  if (program->borrowers > 0)
    misuse("the pipeline of '" + program->kernel->host_name +
           "' is deallocated while a command buffer without retained references uses it");
}

ComputePipelineState* Device::new_pipeline(Function* function, Error** error) {
  if (error) *error = nullptr;
  if (!function) return misuse("newComputePipelineStateWithFunction: nil"), nullptr;
  return make_pipeline(this, function);
}

ComputePipelineState* Device::new_pipeline_reflected(Function* function, MTL::PipelineOption,
                                                     Object** reflection, Error** error) {
  if (reflection) *reflection = nullptr;
  return new_pipeline(function, error);
}

static bool is_archived(const ComputePipelineDescriptor& descriptor) {
  if (!descriptor.archives) return false;
  for (const Ref<Object>& archive : descriptor.archives->objects)
    if (static_cast<BinaryArchive*>(archive.get())->contains(*descriptor.function)) return true;
  return false;
}

ComputePipelineState* Device::new_pipeline_described(ComputePipelineDescriptor* descriptor,
                                                     MTL::PipelineOption options, Object** reflection,
                                                     Error** error) {
  if (error) *error = nullptr;
  if (reflection) *reflection = nullptr;
  if (!descriptor || !descriptor->function)
    return misuse("newComputePipelineStateWithDescriptor: no computeFunction"), nullptr;
  if (descriptor->max_threads > kMaxThreads)
    return misuse("maxTotalThreadsPerThreadgroup is " + std::to_string(descriptor->max_threads) +
                  ", at most 1024 are possible"),
           nullptr;
  if ((options & MTL::PipelineOptionFailOnBinaryArchiveMiss) && !is_archived(*descriptor))
    return fail(error, kPipelineDomain, 2,
                "'" + descriptor->function->description() + "' is in none of the binary archives");
  ComputePipelineState* pipeline = make_pipeline(this, descriptor->function.get());
  pipeline->label = descriptor->label;
  Program& program = *pipeline->program;
  if (descriptor->max_threads != 0)
    program.max_threads = std::min(program.max_threads, uint32_t(descriptor->max_threads));
  program.multiple_of_width = descriptor->multiple_of_width;
  return pipeline;
}

// ---- MTLBinaryArchive: a header, one line per pipeline, a line with their number and hash ----

static constexpr const char* kArchiveHeader = "software Metal archive 1";

static std::string archive_key(const Function& function) {
  return hex(function.code->hash) + " " + function.description();
}

static std::string archive_end(const std::string& lines, size_t count) {
  return "end " + std::to_string(count) + " " + hex(hash_text(lines));
}

BinaryArchive* Device::new_archive(BinaryArchiveDescriptor* descriptor, Error** error) {
  if (error) *error = nullptr;
  auto archive = Ref<BinaryArchive>::adopt(make<BinaryArchive>());
  archive->device = this;
  std::string why;
  if (descriptor && descriptor->url && !archive->load(descriptor->url->file, why))
    return fail(error, kArchiveDomain, MTL::BinaryArchiveErrorInvalidFile,
                descriptor->url->file + ": " + why);
  retain(archive.get());
  return archive.get();
}

bool BinaryArchive::load(const std::string& path, std::string& why) {
  std::ifstream file(path);
  if (!file) return why = "cannot be read", false;
  std::string line, lines;
  if (!std::getline(file, line) || line != kArchiveHeader) return why = "is not an archive", false;
  while (std::getline(file, line) && line.compare(0, 4, "end ") != 0) {
    pipelines[line] = true;
    lines += line + "\n";
  }
  if (line != archive_end(lines, pipelines.size())) return why = "is damaged", false;
  return true;
}

bool BinaryArchive::add(ComputePipelineDescriptor* descriptor, Error** error) {
  if (error) *error = nullptr;
  if (!descriptor || !descriptor->function)
    return misuse("addComputePipelineFunctionsWithDescriptor: no computeFunction"), false;
  std::lock_guard<std::mutex> lock(mutex);
  pipelines[archive_key(*descriptor->function)] = true;
  return true;
}

bool BinaryArchive::contains(const Function& function) {
  std::lock_guard<std::mutex> lock(mutex);
  return pipelines.count(archive_key(function)) != 0;
}

bool BinaryArchive::serialize(foundation::Url* url, Error** error) {
  if (error) *error = nullptr;
  if (!url || url->file.empty()) return misuse("serializeToURL: not the address of a file"), false;
  std::lock_guard<std::mutex> lock(mutex);
  std::string lines;
  for (const auto& entry : pipelines) lines += entry.first + "\n";
  std::ofstream file(url->file);
  file << kArchiveHeader << "\n" << lines << archive_end(lines, pipelines.size()) << "\n";
  file.close();
  if (file) return true;
  fail(error, kArchiveDomain, MTL::BinaryArchiveErrorInternalError, url->file + ": cannot be written");
  return false;
}

namespace {

const bool registered = [] {
  Methods<CompileOptions>()
      .allocates()
      .copies()
      .on<&CompileOptions::fast_math>("fastMathEnabled")
      .on<&CompileOptions::set_fast_math>("setFastMathEnabled:")
      .property<&CompileOptions::math_mode>("mathMode", "setMathMode:")
      .property<&CompileOptions::functions>("mathFloatingPointFunctions", "setMathFloatingPointFunctions:")
      .property<&CompileOptions::language>("languageVersion", "setLanguageVersion:")
      .property<&CompileOptions::optimization>("optimizationLevel", "setOptimizationLevel:")
      .property<&CompileOptions::preserve_invariance>("preserveInvariance", "setPreserveInvariance:")
      .property<&CompileOptions::macros>("preprocessorMacros", "setPreprocessorMacros:");
  Methods<FunctionConstantValues>()
      .allocates()
      .copies()
      .on<&FunctionConstantValues::set>("setConstantValue:type:atIndex:")
      .on<&FunctionConstantValues::set_range>("setConstantValues:type:withRange:")
      .on<&FunctionConstantValues::set_named>("setConstantValue:type:withName:")
      .on<&FunctionConstantValues::reset>("reset");
  Methods<Library>()
      .on<&Library::function_names>("functionNames")
      .on<&Library::new_function>("newFunctionWithName:")
      .on<&Library::new_function_with>("newFunctionWithName:constantValues:error:")
      .property<&Library::device>("device")
      .property<&Library::label>("label", "setLabel:");
  Methods<Function>()
      .on<&Function::name>("name")
      .on<&Function::type>("functionType")
      .property<&Function::device>("device")
      .property<&Function::label>("label", "setLabel:");
  Methods<ComputePipelineDescriptor>()
      .allocates()
      .copies()
      .on<&ComputePipelineDescriptor::reset>("reset")
      .property<&ComputePipelineDescriptor::function>("computeFunction", "setComputeFunction:")
      .property<&ComputePipelineDescriptor::label>("label", "setLabel:")
      .property<&ComputePipelineDescriptor::archives>("binaryArchives", "setBinaryArchives:")
      .property<&ComputePipelineDescriptor::multiple_of_width>(
          "threadGroupSizeIsMultipleOfThreadExecutionWidth",
          "setThreadGroupSizeIsMultipleOfThreadExecutionWidth:")
      .property<&ComputePipelineDescriptor::max_threads>("maxTotalThreadsPerThreadgroup",
                                                         "setMaxTotalThreadsPerThreadgroup:")
      .property<&ComputePipelineDescriptor::indirect>("supportIndirectCommandBuffers",
                                                      "setSupportIndirectCommandBuffers:");
  Methods<ComputePipelineState>()
      .on<&ComputePipelineState::max_threads>("maxTotalThreadsPerThreadgroup")
      .on<&ComputePipelineState::width>("threadExecutionWidth")
      .on<&ComputePipelineState::static_memory>("staticThreadgroupMemoryLength")
      .property<&ComputePipelineState::device>("device")
      .property<&ComputePipelineState::label>("label");
  Methods<BinaryArchiveDescriptor>().allocates().copies().property<&BinaryArchiveDescriptor::url>("url",
                                                                                                  "setUrl:");
  Methods<BinaryArchive>()
      .on<&BinaryArchive::add>("addComputePipelineFunctionsWithDescriptor:error:")
      .on<&BinaryArchive::serialize>("serializeToURL:error:")
      .property<&BinaryArchive::device>("device")
      .property<&BinaryArchive::label>("label", "setLabel:");
  return true;
}();

}  // namespace

}  // namespace metal
}  // namespace soft
