// What the report says, in the page's language: English as it stands in the code, Chinese from here. {0}, {1} ...: values.

import { reason } from "./reasons.js";

const CHINESE = {
  "{0} of {1} evaluations computed": "{1} 次推理中计算了 {0} 次",
  "{0} of them on part of the tokens": "其中 {0} 次只计算部分 token",
  "{0} reused": "重用 {0} 次",
  "{0} left out": "跳过 {0} 次",
  "{0}x by FLOPs": "按 FLOPs 为 {0} 倍",
  "about {0}x by the clock": "按时间约 {0} 倍",
  "{0} on {1}": "{0}，{1}",
  "cache {0} MiB": "缓存 {0} MiB",
  "forecast error where measured {0}": "测得的预测误差 {0}",
  "evaluation {0}, sigma {1}: {2}": "第 {0} 次推理，sigma {1}：{2}",
  "computed {0} % of the tokens": "计算了 {0} % 的 token",
  "computed": "已计算",
  "blocks reused": "重用各模块",
  "not computed": "未计算",
  "attention at density {0}": "注意力密度 {0}",
  "estimated forecast error {0}": "估计的预测误差 {0}",
  "measured forecast error {0}": "测得的预测误差 {0}",
  "dense: {0}": "完整计算：{0}",
  "on part of the tokens": "部分 token",
  "left out, forecast": "跳过，由预测得到",
  "sparse attention (low cell)": "稀疏注意力（矮格）",
  "computed for a reason (hover)": "因故计算（悬停查看）",
  "computed densely, {0} x: {1}": "完整计算 {0} 次：{1}",
  "the first {0} of {1} images are shown": "显示 {1} 张图像中的前 {0} 张",
  "Queue the workflow: what its run computed and left out is shown here.": "运行工作流后，这里显示计算和跳过了什么。",
  "This run was not finished: {0}.": "本次采样没有完成：{0}。",
  "Copy as JSON": "复制为 JSON",
  "Copy as JSON, without token maps": "复制为 JSON（不含 token 图）",
  "Copied": "已复制",
  "Could not be copied": "无法复制",
  "The latest run failed in {0}.": "最近一次运行在 {0} 处失败。",
  "The latest run was interrupted.": "最近一次运行被中断。",
  "The latest run failed in {0}; below is what was known before.": "最近一次运行在 {0} 处失败；下面是之前的结果。",
  "The latest run was interrupted; below is what was known before.": "最近一次运行被中断；下面是之前的结果。",
  "How often each token was computed (yellow: always); below, one cell an evaluation":
    "每个 token 被计算的频率（黄色：总是）；下方每次推理一格",
};

let table = {};

export function speak(locale) {
  table = locale === "zh" ? CHINESE : {};
}

export function word(text, ...values) {
  return (table[text] ?? text).replace(/\{(\d)\}/g, (_, place) => values[place]);
}

// A whole sentence that the server made.
export function sentence(text) {
  return table === CHINESE ? reason(text) : text;
}
