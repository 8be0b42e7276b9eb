// Chinese of what Python says in whole sentences: why something was computed densely, notes and status of a run. {0},
// {1} ...: values; in English in this order. A value may be such a sentence itself. The first that fits is taken.

const SENTENCES = {
  // rapid_core/record.py, nodes/report.py
  "finished": "已完成",
  "interrupted": "被中断",
  "failed": "出错",
  ["RAPID: no RAPID node patched this model (or all are set to off), and RAPID Policy Sampler did not sample with it; "
  + "it ran densely."]:
    "RAPID：没有 RAPID 节点给这个模型打补丁（或全部关闭），也没有用 RAPID 策略采样器采样；它是完整计算的。",
  "RAPID: this model has not been sampled with since it was patched.": "RAPID：这个模型打上补丁后还没有采样过。",

  // rapid_core/host/chain.py, run.py, blocks.py
  "{0} was set twice on this model: the later node wins": "这个模型上设了两次 {0}：以后面的节点为准",
  "{0} and {1} were set on this model: the later node wins": "这个模型上同时设了 {0} 和 {1}：以后面的节点为准",
  "{0} is not known to region-adaptive sampling; all tokens are computed": "区域自适应采样不认识 {0}；计算全部 token",
  "mask of {0} scaled to the latent's {1}": "{0} 的遮罩已缩放到 Latent 的 {1}",
  "dense throughout: the sampler evaluates {0} latents at once, not {1}":
    "全程完整计算：采样器一次推理 {0} 个 Latent，而不是 {1} 个",
  "dense from there on: the sampler changed the latent's size": "从那里开始完整计算：采样器改变了 Latent 的尺寸",
  "noise levels that rise are computed densely": "噪声水平上升的采样会完整计算",
  "the sampler ar_video keeps keys and values of every call: all are computed":
    "采样器 ar_video 会保存每次调用的键和值：全部计算",
  "another node computes the conditions (sampler_calc_cond_batch_function)":
    "由其他节点计算条件（sampler_calc_cond_batch_function）",
  "context windows are computed densely": "上下文窗口会完整计算",
  "several GPUs share this run": "多个 GPU 分担本次采样",
  "EasyCache, which is on this model, too, would keep what was computed in part":
    "这个模型上还有 EasyCache，它会把只计算了一部分的结果保存下来",
  "the blocks of {0} are not known; leaving out whole evaluations works on any model":
    "{0} 的模块未知；跳过整次推理适用于任何模型",
  "another node replaced {0} {1}; its blocks cannot be changed": "其他节点替换了 {0} {1}；模型的模块无法更改",
  "another node patches the model's blocks ({0}); they are computed whole":
    "其他节点给模型的模块打了补丁（{0}）；这些模块会完整计算",

  // rapid_core/host/conditions.py
  "a condition became active; it has no history yet": "有一个条件刚开始起作用，还没有历史记录",
  "a condition that memory_limit was not counted for": "有一个条件没有计入内存上限",
  "a condition has no keys and values of this latent yet": "有一个条件还没有这个 Latent 的键和值",
  "a condition has no residual yet": "有一个条件还没有各模块的残差",
  "a condition has an area: all tokens are computed, no keys and values are kept":
    "有区域条件：计算全部 token，不保存键和值",
  "{0} is conditioned on: all tokens are computed": "条件中有 {0}：计算全部 token",
  "reference latents at timestep zero: all tokens are computed": "参考 Latent 的时间步为零：计算全部 token",

  // rapid_core/host/model_call.py, slicing.py, control.py
  "the batch cannot be split: {0}": "批次无法拆分：{0}",
  "an argument has {0} rows where {1} were expected": "有一个参数有 {0} 行，应为 {1} 行",
  "a ControlNet residual of shape {0} does not match {1} tokens": "ControlNet 残差的形状 {0} 与 {1} 个 token 不符",

  // rapid_core/host/memory.py
  "keys and values: {0} MiB ({1}), conditions: {2}": "键和值：{0} MiB（{1}），{2} 个条件",
  "differences to dense attention: {0} MiB ({1}), conditions: {2}": "与完整注意力的偏差：{0} MiB（{1}），{2} 个条件",
  "tokens for heads: {0} MiB ({1}), conditions: {2}": "供策略头查看的 token：{0} MiB（{1}），{2} 个条件",
  "{0}, more than memory_limit = {1} GiB: tokens are computed all or none":
    "{0}，超过内存上限 {1} GiB：token 要么全部计算，要么全不计算",
  "{0}, more than memory_limit = {1} GiB: none are kept, means stand in for what is left out":
    "{0}，超过内存上限 {1} GiB：不保存偏差，略去的部分由平均值代替",

  // rapid_core/host/features.py, engine/features.py
  "{0} heads: {1}; where they would decide, everything is computed": "{0} 策略头：{1}；本应由它们决定之处，全部计算",
  "they are for {0}, this model is {1}": "它们是为 {0} 制作的，这个模型是 {1}",
  "their tokens are {0} wide, this model's {1}": "它们的 token 宽度为 {0}，这个模型的为 {1}",
  "they look at {0} x {1} tokens ({2} x {3} px), this latent has {4} x {5}":
    "它们查看 {0} x {1} 个 token（{2} x {3} 像素），这个 Latent 有 {4} x {5} 个",
  "they do not know guidance with a condition named {0}": "它们不认识使用条件 {0} 的引导",
  "no condition was computed on all tokens": "没有一个条件计算了全部 token",
  "{0} positive and {1} negative conditions were computed on all tokens, and one of each is understood":
    "有 {0} 个正面条件和 {1} 个负面条件计算了全部 token，而只支持各一个",
  "at guidance {0} no negative condition was computed on all tokens": "引导强度为 {0} 时，没有负面条件计算了全部 token",

  // rapid_core/host/policy_sampler.py
  "{0} chose the noise levels: {1} evaluations instead of {2}": "{0} 选定了噪声水平：{1} 次推理代替 {2} 次",
  "{0}: nothing is done by its heads {1}: {2}": "{0}：它的策略头 {1} 不起作用：{2}",
  "the model has {0} on it": "模型上有 {0}",
  "a sampler does not reach this model's blocks; RAPID Accelerate does": "采样器够不到这个模型的模块；RAPID 加速可以",

  // rapid_core/policies/heads.py, schedule.py, idle.py
  "{0}: the model's pooled vector is not known; the heads decide without it":
    "{0}：模型的池化向量未知；策略头在没有它的情况下作决定",
  "{0}: the budget was spent {1} steps before the end, which are forecast; a lower speedup leaves more":
    "{0}：预算在结束前 {1} 步用完，其余由预测得到；降低加速倍数可以多计算",
  "{0} steps at {1} times the speed: one evaluation is computed": "{0} 步、{1} 倍：只计算一次推理",
  ["{0} was searched for euler on other noise levels: so few evaluations are spaced evenly instead"]:
    "{0} 是为其他噪声水平上的 euler 搜索的：推理次数这么少时改为均匀分布",
  ["{0} was searched for euler on other noise levels: its plan is moved to this run's steps, forecasts are "
  + "Adams-Bashforth's"]:
    "{0} 是为 euler 在其他噪声水平下搜索的：其步骤计划移到本次采样的各步，预测用 Adams-Bashforth",
  "all tokens were computed in every evaluation: {0}": "每次推理都计算了全部 token：{0}",
  "raise error_threshold or keep_ratio, take more steps, or a sampler that adds no noise":
    "请调高误差阈值或保留比例，增加步数，或换用不加噪声的采样器",
  "lower keep_ratio, warm_up or tail, raise refresh_interval, or take more steps":
    "请调低保留比例、预热比例或结尾比例，调高刷新间隔，或增加步数",

  // rapid_core/engine/sparse
  "{0} image tokens make {1} tiles of {2}: attention is dense":
    "{0} 个图像 token 分成 {1} 个大小为 {2} 的分块：注意力完整计算",
  "attention over pooled or missing keys is dense": "键经过平均或有缺失：注意力完整计算",
  "{0} computed tokens are less than a tile of {1}: their attention is dense":
    "计算的 {0} 个 token 不足一个大小为 {1} 的分块：其注意力完整计算",
  "choosing tiles would cost more than they leave out: attention is dense":
    "选择分块的开销大于略去的部分：注意力完整计算",
  "attention under a mask is dense with {0}": "{0} 不支持注意力掩码：注意力完整计算",
  "attention under a mask that differs between queries is dense": "各查询的注意力掩码不同：注意力完整计算",
  "attention in {0} is dense": "{0} 类型的注意力完整计算",
  "auto: no sparse attention was measured faster than dense on {0} at {1} tokens, heads of {2} and density {3}":
    "auto：在 {0} 上，{1} 个 token、注意力头大小为 {2}、密度为 {3} 时，没有实测比完整注意力更快的稀疏注意力",
  "{0} does not work here ({1}: {2}): attention is dense": "{0} 在这里无法工作（{1}: {2}）：注意力完整计算",
  "{0} is off by {1} from the reference on {2}: attention is dense":
    "{0} 在 {2} 上与参考实现相差 {1}：注意力完整计算",
  "flex needs PyTorch 2.5 or newer": "flex 需要 PyTorch 2.5 或更新版本",
  "flex needs a C++ compiler on a CPU": "flex 在 CPU 上需要 C++ 编译器",
  "flex needs Triton (it comes with PyTorch for CUDA on Linux; triton-windows on Windows)":
    "flex 需要 Triton（Linux 上随 CUDA 版 PyTorch 提供；Windows 上为 triton-windows）",
  "gather is made for CPUs; on {0} take flex": "gather 为 CPU 而写；在 {0} 上请用 flex",
  "xformers runs on CUDA only": "xformers 只能在 CUDA 上运行",
  "xformers is not installed, or too old for paged attention (pip install xformers)":
    "未安装 xformers，或版本太旧、不支持分页注意力（pip install xformers）",
  "spargeattn runs on CUDA only": "spargeattn 只能在 CUDA 上运行",
  "spargeattn is not installed (github.com/thu-ml/SpargeAttn, built for your torch and CUDA)":
    "未安装 spargeattn（github.com/thu-ml/SpargeAttn，须按你的 torch 和 CUDA 编译）",

  // Last, for others end like these.
  "{0}: attention is dense": "{0}：注意力完整计算",
  "{0} (unverified)": "{0}（未验证）", // rapid_core/architectures.py
};

let patterns = null; // made at the first use

// A value may be empty, or go over several lines as the errors of compilers do.
function patternOf(text) {
  const parts = text.split(/\{\d\}/).map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return new RegExp(`^${parts.join("([^]*?)")}$`);
}

export function reason(text) {
  patterns ??= Object.entries(SENTENCES).map(([english, chinese]) => [patternOf(english), chinese]);
  for (const [pattern, chinese] of patterns) {
    const found = text.match(pattern);
    if (found) return chinese.replace(/\{(\d)\}/g, (_, place) => reason(found[Number(place) + 1]));
  }
  return text;
}
