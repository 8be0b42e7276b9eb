"""Traditional Chinese out of the Simplified of locales/zh and web/docs/<node>/zh.md, so that a page in
zh-TW does not speak English: letter by letter, and then words that Taiwan has others for.

Letters are enough for the words that are here; a test names a letter that this table does not know.
What a letter becomes is from OpenCC (Apache-2.0), as its `s2tw` has it for these words."""

from __future__ import annotations

from pathlib import Path

from devkit.base_folder import REPOSITORY

# fmt: off
SIMPLIFIED = (
    "与专东两个为么义习于仅从仓们价优会传余关内册写决况准减几则刚删别制务动势匀区单占历参发变叠号"
    "后吗响图块声处备复够头夹学宁实宽对寻导将尝尽层属布带帧并库应开异张强当录志态总悬愿户扩折抛"
    "报担拟择挂损换据数断无旧时显晓机权条来构标样检残没测浏点热状独玛现画着码础确离种称简类系紧"
    "约级纯线练细终结绕绘给络绝统续缓编缩网脚脸节荐蓝补装见观规视览计认让训记许论设证评识诉词译"
    "试询该详语误说请读调贝负败质贴费趋转轮软载较输边达过运还这进连适选邻采里针钟钩钮销锐错键长"
    "门闭间阅阈阶随隐难页项顺须预频额饥饿馏验骤黄"
)
TRADITIONAL = (
    "與專東兩個為麼義習於僅從倉們價優會傳餘關內冊寫決況準減幾則剛刪別製務動勢勻區單佔歷參發變疊號"
    "後嗎響圖塊聲處備複夠頭夾學寧實寬對尋導將嘗儘層屬佈帶幀並庫應開異張強當錄誌態總懸願戶擴摺拋"
    "報擔擬擇掛損換據數斷無舊時顯曉機權條來構標樣檢殘沒測瀏點熱狀獨瑪現畫著碼礎確離種稱簡類係緊"
    "約級純線練細終結繞繪給絡絕統續緩編縮網腳臉節薦藍補裝見觀規視覽計認讓訓記許論設證評識訴詞譯"
    "試詢該詳語誤說請讀調貝負敗質貼費趨轉輪軟載較輸邊達過運還這進連適選鄰採裡針鐘鉤鈕銷銳錯鍵長"
    "門閉間閱閾階隨隱難頁項順須預頻額飢餓餾驗驟黃"
)
SAME = (
    "一丁三上下不且中主久之乎也了事二互些人什仍他代以件任份估似但位低住何作你佳使例供依便保修倍"
    "候值偏做停像允先入全八公共其再出分切划列初到刷前剩力加包化升半即原去及取受口另只可史右各合"
    "同名向否含告味命和品哪器噪四回因固在地址均型域基增外多大太失好如始子字存它守安完定客家容密寸"
    "小少尖尚就尺尾工左差己已常幅平序底度式引形影待很得循微必忘忠快忽怎性您情惰想意慢成或截所手"
    "才打批找把投拆拒拖括持指按掉排接推掩提插揭搜支收改放故效散整文斜新方旋族日早明是普更替最有服期未"
    "本束板果某查校格模次止正此步段母每比池沿法注流浮消深添清滑漂演灰然照片版物率理生用由界留略"
    "疏白百的益目盲直相省看真知矮示票秒移稀程稿究空窗竟端符第等答策算管粗精糙素索累缺罩置美考者而"
    "耗能自至致色花若英草蒸藏行衡表被西要解走起超越足跟跨跳身近返透逐途通速遇道遮遵那部都配重量"
    "附降限除隔零需露非靠面音首高黑默鼠"
)
# fmt: on
# After the letters, in this order: where one letter stands for two, then words.
WORDS = {
    "限製": "限制",
    "控製": "控制",
    "合並": "合併",
    "採樣": "取樣",
    "視頻": "影片",
    "內存": "記憶體",
    "顯存": "顯示記憶體",
    "文件夾": "資料夾",
    "文件": "檔案",
    "圖像": "影像",
    "運行": "執行",
    "加載": "載入",
    "設置": "設定",
    "服務器": "伺服器",
    "網絡": "網路",
    "數據": "資料",
    "緩存": "快取",
    "調度器": "排程器",
    "質量": "品質",
    "默認": "預設",
    "打開": "開啟",
    "支持": "支援",
    "軟件": "軟體",
}
LETTERS = str.maketrans(SIMPLIFIED, TRADITIONAL)


def traditional(text: str) -> str:
    """A text in Simplified Chinese, in Traditional; what is not Chinese stays."""
    text = text.translate(LETTERS)
    for word, instead in WORDS.items():
        text = text.replace(word, instead)
    return text


def pairs() -> dict[Path, Path]:
    """Files in Traditional Chinese, and the ones that they are made of."""
    words = sorted((REPOSITORY / "locales" / "zh").glob("*.json"))
    pages = sorted((REPOSITORY / "web" / "docs").glob("*/zh.md"))
    made = {REPOSITORY / "locales" / "zh-TW" / path.name: path for path in words}
    return made | {path.with_name("zh-TW.md"): path for path in pages}


def write() -> None:
    """Make all of them anew."""
    for made, source in pairs().items():
        made.parent.mkdir(exist_ok=True)
        text = traditional(source.read_text(encoding="utf-8"))
        made.write_text(text, encoding="utf-8", newline="\n")
