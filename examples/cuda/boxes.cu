// Boxes from features that already lie on the GPU, as an engine leaves them.
//   nvcc -std=c++17 --fmad=false -arch=native -I PREFIX/include boxes.cu -o boxes
//   ./boxes [FEATURES LOGITS WEIGHT IMAGES CHANNELS SIDE CLASSES MAP_SIDE]     raw little-endian float32 files
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "wgap/kernel/cuda_launch.h"

namespace {

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

std::vector<float> read(const char* path, std::size_t count) {
  std::vector<float> values(count);
  std::FILE* const file = std::fopen(path, "rb");
  if (file == nullptr || std::fread(values.data(), sizeof(float), count, file) != count) {
    std::fprintf(stderr, "%s: expected %zu float32 values\n", path, count);
    std::exit(1);
  }
  std::fclose(file);
  return values;
}

float* on_device(const std::vector<float>& values) {
  float* pointer = nullptr;
  require(cudaMalloc(&pointer, values.size() * sizeof(float)), "cudaMalloc");
  require(cudaMemcpy(pointer, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice), "cudaMemcpy");
  return pointer;
}

}  // namespace

int main(int count, char** arguments) {
  int images = 1, channels = 4, side = 7, classes = 2, map_side = 112;
  std::vector<float> features, logits, weight;
  if (count == 9) {
    images = std::atoi(arguments[4]), channels = std::atoi(arguments[5]), side = std::atoi(arguments[6]);
    classes = std::atoi(arguments[7]), map_side = std::atoi(arguments[8]);
    features = read(arguments[1], static_cast<std::size_t>(images) * channels * side * side);
    logits = read(arguments[2], static_cast<std::size_t>(images) * classes);
    weight = read(arguments[3], static_cast<std::size_t>(classes) * channels);
  } else {
    features.assign(static_cast<std::size_t>(channels) * side * side, 0.0f);
    for (int c = 0; c < channels; ++c)
      for (int y = 2; y < 5; ++y)
        for (int x = 1; x < 4; ++x) features[static_cast<std::size_t>((c * side + y) * side + x)] = 1.0f;
    logits = {0.0f, 1.0f};
    weight.assign(static_cast<std::size_t>(classes) * channels, 0.5f);
  }

  wgap::CudaLaunch launch;
  require(wgap::cuda_prepare({channels, side, side, map_side, map_side, classes}, images, &launch), "cuda_prepare");
  wgap::CudaTask task{};
  task.rule = wgap::adaptive_rule();
  task.per_image = 1;
  task.logits = on_device(logits);
  task.features = on_device(features);
  task.weight = on_device(weight);
  require(cudaMalloc(&task.records, static_cast<std::size_t>(images) * sizeof(wgap::Record)), "cudaMalloc");
  require(cudaMalloc(&task.scratch, launch.scratch_bytes), "cudaMalloc");
  cudaStream_t stream;
  require(cudaStreamCreate(&stream), "cudaStreamCreate");
  require(wgap::cuda_localize(launch, task, stream), "launch");
  std::vector<wgap::Record> records(static_cast<std::size_t>(images));
  require(cudaMemcpyAsync(records.data(), task.records, records.size() * sizeof(wgap::Record), cudaMemcpyDeviceToHost,
                          stream),
          "cudaMemcpyAsync");
  require(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  for (const wgap::Record& r : records)
    std::printf("{\"status\": %d, \"class_id\": %d, \"level\": %d, \"box\": [%d, %d, %d, %d]}\n", r.status,
                r.class_id, r.level, r.box[0], r.box[1], r.box[2], r.box[3]);
  return 0;
}
