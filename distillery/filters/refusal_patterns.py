# ruff: noqa: RUF001
"""How models decline, by language: regular expressions for the beginning of a response.

Each wants an apology or "I cannot" together with a verb of helping, or "as an AI". So an agent who
is sorry that a hotel is full is not refusing. They are searched without regard to case.
"""

from schemas.filters import Language

_I_AM = r"(i['\u2019]?m|i am|we['\u2019]?re|we are)"
_I_CANNOT = r"(i|we) (can ?not|can['\u2019]?t|won['\u2019]?t)"
_SORRY_EN = rf"({_I_AM} (very |so )?(sorry|afraid)|sorry|unfortunately|my apologies|i apologi[sz]e)"
_DO_EN = r" (help|assist|answer|comply|do|provide|fulfil+|discuss|continue|write|create|generate)"

_DO_DE = (
    r"(weiter)?helfen|unterstützen|beantworten|erfüllen|nachkommen|bereitstellen|behilflich|"
    r"schreiben|verfassen|erstellen|generieren|fortfahren|diskutieren|entsprechen"
)
_DO_FR = (
    r"aider|assister|répondre|fournir|satisfaire|accéder à|donner suite|écrire|rédiger|créer|"
    r"générer|continuer|discuter"
)
_DO_ES = (
    r"((ayud|asist|contest|respond|cumpl|proporcion|escrib|redact|gener|continu|discut)"
    r"(ar|er|ir)|crear)(te|le|lo|la|los|les)?"
)
_DO_IT = (
    r"(aiut|assist|rispond|soddisf|forn|scriv|cre|gener|continu|discut)"
    r"(ar|er|ir)(e|ti|la|le|vi|lo)?"
)
_DO_PT = (
    r"(ajud|auxili|assist|respond|cumpr|fornec|escrev|redig|cri|ger|continu|discut)"
    r"(ar|er|ir)(-lo|-la|-te|-lhe)?"
)
_DO_NL = r"helpen|beantwoorden|assisteren|voldoen|schrijven|opstellen|genereren|doorgaan|bespreken"
_DO_PL = r"pomóc|odpowiedzieć|spełnić|napisać|stworzyć|wygenerować|kontynuować|udzielić|zrealizować"
_DO_RU = (
    r"помочь|ответить|выполнить|предоставить|написать|создать|сгенерировать|продолжить|обсуждать"
)

PATTERNS: dict[Language, tuple[str, ...]] = {
    "en": (
        rf"^{_I_AM} (very |so )?sorry[.!]?$",
        rf"^({_SORRY_EN}[,.]? )?(but )?(that )?({_I_CANNOT}|{_I_AM} (unable|not able) to)"
        rf"({_DO_EN}\b|[.!]?$)",
        r"^as an ai\b",
    ),
    "de": (
        r"^(es )?tut mir (sehr |wirklich )?leid[.!]?$",
        r"^((es )?tut mir (sehr |wirklich )?leid|entschuldigung|leider|ich bedaure|sorry)?[,.]? ?"
        r"(aber )?(dass )?(ich (kann|darf|möchte|werde)|"
        r"(dabei |damit |das |hierbei )?(kann|darf|möchte|werde) ich)\b"
        rf"[^.!?,]{{0,60}}\b(nicht|keine?n?)\b[^.!?,]{{0,60}}\b({_DO_DE})\b",
        r"^((es )?tut mir leid|leider)?[,.]? ?(aber )?(ich bin|bin ich) (leider )?"
        r"nicht in der lage\b",
        r"^als (ki|ai|künstliche intelligenz|sprachmodell)\b",
    ),
    "fr": (
        r"^(je suis (vraiment |sincèrement )?)?désolée?[.!]?$",
        r"^((je suis (vraiment |sincèrement )?)?désolée?|malheureusement|je regrette|mes excuses)?"
        r"[,.]? ?(mais )?je ne (peux|puis|suis) (malheureusement )?(pas )?"
        r"((en mesure|capable) (de |d['\u2019])?)?(vous |te |t['\u2019]|y |l['\u2019])?"
        rf"({_DO_FR})\b",
        r"^en tant qu['\u2019e] ?(ia|intelligence artificielle|modèle de langage|assistant ia)\b",
    ),
    "es": (
        r"^lo (siento|lamento)( mucho)?[.!]?$",
        r"^(lo (siento|lamento)( mucho)?|perdón|disculp[ae]|lamentablemente|desafortunadamente)?"
        r"[,.]? ?(pero )?(no (puedo|podemos)|no (me es posible|soy capaz de|estoy en condiciones "
        rf"de)) ({_DO_ES})\b",
        r"^como (una )?(ia|inteligencia artificial|modelo de lenguaje|asistente de ia)\b",
    ),
    "it": (
        r"^mi dispiace( molto)?[.!]?$",
        r"^(mi dispiace( molto)?|sono spiacente|spiacente|scus[ai]|purtroppo)?[,.]? ?(ma )?"
        rf"non (posso|possiamo|sono in grado di|mi è possibile) ({_DO_IT})\b",
        r"^(come|in quanto) (ia|intelligenza artificiale|modello linguistico|assistente ia)\b",
    ),
    "pt": (
        r"^(sinto muito|lamento( muito)?|desculpe)[.!]?$",
        r"^(sinto muito|lamento( muito)?|(me )?desculpe|desculpa|infelizmente|peço desculpas?)?"
        r"[,.]? ?(mas )?(eu )?não (posso|podemos|consigo|sou capaz de) (te |o |a |lhe )?"
        rf"({_DO_PT})\b",
        r"^como (uma )?(ia|inteligência artificial|modelo de linguagem|assistente de ia)\b",
    ),
    "nl": (
        r"^het spijt me[.!]?$",
        r"^(het spijt me|sorry|helaas|excuses)?[,.]? ?(maar )?(ik (kan|mag|zal)|(kan|mag|zal) ik)\b"
        rf"[^.!?,]{{0,60}}\b(niet|geen)\b[^.!?,]{{0,60}}\b({_DO_NL})\b",
        r"^als (een )?(ai|kunstmatige intelligentie|taalmodel)\b",
    ),
    "pl": (
        r"^(przykro mi|przepraszam)[.!]?$",
        r"^(przykro mi|przepraszam|niestety)?[,.]? ?(ale )?nie (mogę|jestem w stanie|potrafię) "
        rf"(ci |panu |pani |w tym |na to )*({_DO_PL})\b",
        r"^jako (sztuczna inteligencja|model językowy|ai)\b",
    ),
    "ru": (
        r"^(извините|простите|мне (очень )?жаль)[.!]?$",
        r"^(извините|простите|к сожалению|мне (очень )?жаль|прошу прощения)?[,.]? ?(но )?"
        rf"я не (могу|в состоянии|способен|способна) (вам |тебе |с этим |на это )*({_DO_RU})\b",
        r"^как (искусственный интеллект|языковая модель|ии)\b",
    ),
    "zh": (
        r"^(很|非常)?(抱歉|对不起|對不起)[。！!.]?$",
        r"^((很|非常)?(抱歉|对不起|對不起)|不好意思)?[，,。！!]?\s?(但是?)?我(无法|無法|不能|不可以|"
        r"没办法|沒辦法)(为|為|给|給|向|就)?(您|你|此|这|這)?(提供|协助|協助|帮助|幫助|帮|幫|回答|满足|滿足|"
        r"生成|创作|創作|撰写|撰寫|继续|繼續|讨论|討論)",
        r"^作为(一个|一名|一款)?(ai|人工智能|语言模型|大语言模型)",
    ),
    "ja": (
        r"^(大変)?(申し訳(ありません|ございません)|すみません|ごめんなさい)[。！]?$",
        r"^((大変)?申し訳(ありません|ございません|ない)(が|けど|けれど)?|すみませんが?|ごめんなさい|"
        r"残念ながら|恐れ入りますが|私は|私には)[、。,]?\s?[^。！？]{0,40}"
        r"(お手伝い|お答え|お応え|回答|協力|支援|提供|作成|生成)[^。！？、]{0,15}"
        r"(できません|出来ません|できかねます|いたしかねます)",
        r"^ai(アシスタント|言語モデル)?として",
    ),
    "ko": (
        r"^(죄송합니다|죄송해요|미안합니다)[.!]?$",
        r"^(죄송(합니다만?|하지만|해요)|미안(합니다만?|하지만|해요)|유감이지만|유감입니다만|안타깝지만)"
        r"[,.!]?\s?(하지만 |그러나 )?[^.!?]{0,40}(도와\s?드릴|도울|도움을 드릴|답변(해 )?(드릴|할)|"
        r"답(해 )?드릴|제공(해 )?(드릴|할)|작성(해 )?(드릴|할)|응할)\s?수(가)?\s?없",
        r"^(저는 )?ai( 언어 모델)?로서",
    ),
}
